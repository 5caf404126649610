"""A device that is full of blocks, flips in its files, and what is served of it afterwards.

As a program it opens a device; or, given a directory to work in and flips, goes through these in an index that was
never closed, with one line for each that it has come through: LMDB trusts its file, so a flip may end the process.
"""

import shutil
import sys
from contextlib import suppress
from pathlib import Path

from kvstore.errors import DeviceFailed
from kvstore.node.storage.entry import Entry
from tests.node.storage.small_device import SLOTS, entry, found, is_proved, open_device, open_slab, read, store

FILES = 3
OPEN_STATE = "kvstore-storage-index-1 open synced"


def stored(file: int, slot: int) -> Entry:
    return entry(1 + file * SLOTS + slot, generation=1 + slot)


def fill(path: Path) -> None:
    with open_device(path) as device:
        for file in (open_slab(device) for _ in range(FILES)):
            for slot in range(SLOTS):
                store(device, file, slot, stored(file, slot))


def flip(path: Path, at: int, bit: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))


def served(path: Path, *, write: bool = False) -> int:
    """Opens a device and reads all of it: how many blocks are proved. Fails where something else was found."""
    with open_device(path) as device:
        there = found(device)
        for (file, slot), block in there.items():
            assert block == stored(file, slot)
        proved = sum(is_proved(read(device, file, slot), block) for (file, slot), block in there.items())
        for file, slot in there if write else ():
            store(device, file, slot, stored(file, slot))
        return proved


def main() -> None:
    device, *rest = sys.argv[1:]
    if not rest:
        served(Path(device))
        return
    work, *places = rest
    for place in places:
        at, bit = map(int, place.split(":"))
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(device, work)
        (Path(work) / "index" / "state").write_text(OPEN_STATE)
        flip(Path(work) / "index" / "data.mdb", at, bit)
        with suppress(DeviceFailed):  # a commit may be what finds the damage
            served(Path(work), write=True)
        served(Path(work))
        print(place, flush=True)


if __name__ == "__main__":
    main()

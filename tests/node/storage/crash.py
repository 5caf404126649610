"""The crash test: a process that writes to a device is killed at random moments, and the device is opened again.

    python -m tests.node.storage.crash --kills 300

Whatever the writer was told to be committed is there with its bytes; nothing is there that it did not write; and what
is there is proved. The writer says on its standard output what it is about to do and what is done; a line that it
wrote is read though it was killed.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from kvstore.node.storage.device import Device
from kvstore.node.storage.index import Batch
from tests.node.storage.small_device import (
    SLOT_BYTES,
    SLOTS,
    TENANT,
    entry,
    found,
    is_proved,
    open_device,
    read,
    write,
)

FILES = 8
_BATCH = 6


@dataclass
class Told:
    """What writers said. held: (file, slot) → number of the block that must be there. begun: (file, slot, number) of
    all that may be."""

    held: dict[tuple[int, int], int] = field(default_factory=dict)
    begun: set[tuple[int, int, int]] = field(default_factory=set)
    commits: int = 0

    def hear(self, lines: Iterable[str]) -> None:
        for line in lines:
            word, *rest = line.split()
            numbers = list(map(int, rest))
            match word:
                case "drop":
                    self.held.pop((numbers[0], numbers[1]), None)
                case "label":
                    self.held = {place: block for place, block in self.held.items() if place[0] != numbers[0]}
                case "begin":
                    self.begun.add((numbers[0], numbers[1], numbers[2]))
                case "held":
                    self.held[numbers[0], numbers[1]] = numbers[2]
                    self.commits += 1


@dataclass
class Tally:
    kills: int = 0
    blocks: int = 0
    commits: int = 0
    wrong: list[str] = field(default_factory=list)


def check(path: Path, told: Told) -> int:
    """Opens the device and holds it against what was told; answers how many blocks it has."""
    with open_device(path, FILES) as device:
        there = found(device)
        for (file, slot), number in told.held.items():
            assert (file, slot) in there, f"block {number} was committed at {file}:{slot} and is not there"
            assert there[file, slot].key == entry(number).key, f"{file}:{slot} holds another block than {number}"
        for (file, slot), block in there.items():
            number = int.from_bytes(block.key, "big")
            assert (file, slot, number) in told.begun, f"{file}:{slot} holds {number}, which was never written there"
            assert block == entry(number, number, block.deadline_ms)
            assert is_proved(read(device, file, slot), block), f"the bytes of {number} at {file}:{slot} are wrong"
            told.held.setdefault((file, slot), number)
        return len(there)


def crash(path: Path, kills: int, seed: int, *, sync: bool) -> Tally:
    """Raises AssertionError at the first thing that is wrong."""
    random, told, tally = Random(seed), Told(), Tally()
    for kill in range(kills):
        command = [sys.executable, "-m", "tests.node.storage.crash", "--write", str(path), "--seed", f"{seed + kill}"]
        writer = subprocess.Popen([*command, *["--sync"] * sync], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        ready = writer.stdout.readline()
        assert ready == "open\n", "the writer could not open the device"
        deadline = time.monotonic() + random.uniform(0, 0.25)
        with ThreadPoolExecutor(1) as thread:
            lines = thread.submit(writer.stdout.readlines)
            time.sleep(max(0, deadline - time.monotonic()))
            writer.send_signal(signal.SIGKILL)
            writer.wait(30)
            told.hear(line for line in lines.result(30) if line.endswith("\n"))
        writer.stdout.close()
        tally.blocks = check(path, told)
        tally.kills += 1
        tally.commits = told.commits
    return tally


# ---- the writer ------------------------------------------------------------------------------------------------------


def say(lines: Iterable[str]) -> None:
    os.write(sys.stdout.fileno(), "".join(f"{line}\n" for line in lines).encode())


def numbers_from(seed: int) -> Iterator[int]:
    """Numbers of blocks, which are their generations too: ascending over all writers."""
    number = seed << 24
    while True:
        number += 1
        yield number


def write_until_killed(path: Path, seed: int, *, sync: bool) -> None:
    device = open_device(path, FILES)
    say(["open"])
    random, numbers = Random(seed), numbers_from(seed)
    files = [slab.file for slab in device.take_recovered()]
    while len(files) < FILES - 1:
        files.append(device.take_file())
        label(device, files[-1], sync=sync)
    with ThreadPoolExecutor(4) as threads:
        while True:
            if random.random() < 0.05:
                label(device, random.choice(files), sync=sync)
            places = {(random.choice(files), random.randrange(SLOTS)) for _ in range(_BATCH)}
            put_batch(device, threads, {place: next(numbers) for place in sorted(places)}, sync=sync)


def label(device: Device, file: int, *, sync: bool) -> None:
    batch = Batch()
    batch.open_slab(file, SLOT_BYTES, TENANT, SLOTS)
    say([f"label {file}"])
    device.commit(batch, [(file, SLOT_BYTES, TENANT)], [], sync=sync)


def put_batch(device: Device, threads: ThreadPoolExecutor, blocks: dict[tuple[int, int], int], *, sync: bool) -> None:
    emptied, named = Batch(), Batch()
    for (file, slot), number in blocks.items():
        emptied.drop(file, slot, number)
        named.put(file, slot, entry(number, number))
    say(f"drop {file} {slot}" for file, slot in blocks)
    device.commit(emptied, [], [], sync=sync)
    say(f"begin {file} {slot} {number}" for (file, slot), number in blocks.items())
    list(threads.map(lambda block: write(device, *block[0], entry(block[1], block[1])), blocks.items()))
    device.commit(named, [], {file for file, _ in blocks}, sync=sync)
    say(f"held {file} {slot} {number}" for (file, slot), number in blocks.items())


def main() -> None:
    parser = argparse.ArgumentParser(description="Kills a process that writes to a device, and opens the device again.")
    parser.add_argument("--kills", type=int, default=300, help="how often")
    parser.add_argument("--seed", type=int, default=1, help="of all that is random")
    parser.add_argument("--path", type=Path, help="directory of the device; default: a temporary one")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--sync", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.write is not None:
        write_until_killed(args.write, args.seed, sync=args.sync)
    path = args.path or Path(tempfile.mkdtemp(prefix="kvstore-crash-"))
    for sync in (True, False):
        begun = time.monotonic()
        tally = crash(path / f"sync-{sync}", args.kills // 2, args.seed, sync=sync)
        print(
            f"sync={sync}: {tally.kills} kills in {time.monotonic() - begun:.0f} s, {tally.commits} blocks committed, "
            f"{tally.blocks} there at the end, 0 lost, 0 wrong"
        )
    if args.path is None:
        shutil.rmtree(path)


if __name__ == "__main__":
    main()

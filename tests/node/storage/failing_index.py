"""A device whose index and small files fail: run under `strace`, which makes one system call in so many do so.

python -m tests.node.storage.failing_index FOLDER CALL ROUNDS STEP

Each round works on FOLDER/work, anew, until a typed error; then what is left is copied out of the reach of the faults,
and must be whole: all that was acknowledged is there, nothing else is wrong. It begins with STEP calls more than the
round before which do nothing, so that the fault comes that much earlier in the work.
"""

import contextlib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from kvstore.errors import DeviceFailed
from tests.node.storage.small_device import open_device
from tests.node.storage.test_device_faults import Ledger, script

FAULTY = ("index/data.mdb", "index/state", "index/state.new", "device.json", "device.json.new")
NOTHING: dict[str, Callable[[int], object]] = {
    "pwrite64": lambda fd: os.pwrite(fd, b"", 0),
    "writev": lambda fd: os.writev(fd, [b""]),
    "fdatasync": os.fdatasync,
    "fsync": os.fsync,
}


def use_up(path: Path, call: str, count: int) -> None:
    fd = os.open(path / "device.json.new", os.O_RDWR | os.O_CREAT)
    for _ in range(count):
        with contextlib.suppress(OSError):
            NOTHING[call](fd)
    os.close(fd)


def fails(path: Path, ledger: Ledger) -> bool:
    """Whether the work ended in a typed error."""
    try:
        device = open_device(path)
        try:
            script(device, ledger)
        finally:
            device.close()
        open_device(path).close()
    except DeviceFailed:
        return True
    return False


def main() -> None:
    folder, call, rounds, step = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    work, copy = folder / "work", folder / "copy"
    failures = 0
    for number in range(rounds):
        ledger = Ledger()
        work.mkdir()
        use_up(work, call, number * step)
        failures += fails(work, ledger)
        shutil.copytree(work, copy)
        with open_device(copy) as device:
            ledger.check(device)
        shutil.rmtree(work)
        shutil.rmtree(copy)
    print(failures)


if __name__ == "__main__":
    main()

"""The directory of a device's index, and whether what lies there can be trusted.

The file `state` says how the index was left:

    closed DIGEST       by its owner, and this was the digest of the file: another one was changed since
    open synced         every commit was synced: it outlives the machine
    open BOOT           commits were not synced: it outlives the process, so it is trusted while the boot id is the same
    loading N …         it was being read, N times without getting to the end: LMDB trusts its file, and a page that is
                        not what it was can end the process. The second time the index is discarded

Anything else, and it is discarded too.
"""

import contextlib
import logging
import os
from pathlib import Path

import xxhash

from kvstore.node.storage.clock import read_boot_id

FORMAT = "kvstore-storage-index-1"
_LOADS_MAX = 2
_PART_BYTES = 1024 * 1024
log = logging.getLogger(__name__)


class IndexFolder:
    """Raises OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(exist_ok=True)
        self._loads, self._left = self._read_state()
        self.trusted = self._is_trusted()

    def loading(self) -> None:
        """Marks the index as being read."""
        self._mark(f"loading {self._loads + 1} {self._left}")

    def opened(self, synced: bool) -> None:
        """Marks the index as read and open for commits of this kind."""
        self._mark("open synced" if synced else f"open {read_boot_id()}")

    def closed(self) -> None:
        """Marks the index as closed. Its file is not written any more."""
        self._mark(f"closed {self._digest()}")

    def distrust(self) -> None:
        """Whatever comes: the next opening discards the index."""
        self._mark("damaged")

    def discard(self) -> None:
        """Removes the index's own files, and no others."""
        self._left = ""  # until it was filled, what comes next is not trusted either
        for name in ("data.mdb", "lock.mdb", "state"):
            with contextlib.suppress(FileNotFoundError):
                (self.path / name).unlink()
                log.warning("index %s is discarded", self.path / name)

    def _is_trusted(self) -> bool:
        if self._loads >= _LOADS_MAX:
            return False
        how, _, what = self._left.partition(" ")
        if how == "closed":
            return what == self._digest()
        return how == "open" and what in ("synced", read_boot_id())

    def _read_state(self) -> tuple[int, str]:
        """How often it was begun to be read since, and how it was left before."""
        try:
            format_, _, state = (self.path / "state").read_text().partition(" ")
            loads = 0
            if state.startswith("loading "):
                _, count, state = state.split(" ", 2)
                loads = int(count)
        except (OSError, ValueError):
            return 0, ""
        return loads, state if format_ == FORMAT else ""

    def _digest(self) -> str:
        """It is read, not mapped: there a sector that the disk does not give is an error, here a signal."""
        digest, part = xxhash.xxh3_128(), memoryview(bytearray(_PART_BYTES))
        try:
            with open(self.path / "data.mdb", "rb", buffering=0) as file:
                while length := file.readinto(part):
                    digest.update(part[:length])
        except OSError:
            return "none"
        return digest.hexdigest()

    def _mark(self, state: str) -> None:
        replace_file(self.path / "state", f"{FORMAT} {state}")


def replace_file(path: Path, text: str) -> None:
    """Writes a small file: after a crash at any moment it holds the old text or the new one."""
    fresh = path.with_name(f"{path.name}.new")
    with open(fresh, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Brings names that were made or removed in a directory to stable storage."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

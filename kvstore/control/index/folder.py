"""The directory of an index: held by one process at a time, and only trusted when it can be.

The index is written without waiting for the disk, so its file is whole after a clean close and after the death of the
process (the pages are the kernel's by then), but not after the death of the machine. The marker says which it was:

    format ␣ boot id      written when opened: a file with the id of *this* boot outlived only a process
    format ␣ "clean"      written after the last sync of a clean close

Anything else, and the files are discarded: the nodes report again, which costs seconds of misses and no wrong byte.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
from pathlib import Path

from kvstore.errors import ConfigError

FORMAT = "kvstore-index-1"
_CLEAN = "clean"
_PREFIX = "kvstore-index-"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
log = logging.getLogger(__name__)


class IndexFolder:
    """An open, locked directory. `path`: empty for a temporary one, which `close` removes; one whose process was killed
    is removed when the next is made.

    Raises ConfigError when the directory cannot be used, or another process uses it.
    """

    def __init__(self, path: str) -> None:
        self.temporary = not path
        try:
            self.path = Path(path or _temporary())
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / "owner", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(f"control.index_path {path}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise ConfigError(f"control.index_path {path}: another control plane uses this index") from error
        if not self._trusted():
            self.discard("its machine went down while it was open, or another release wrote it")

    def opened(self) -> None:
        """Marks the index as open in this boot."""
        self._mark(_boot_id())

    def discard(self, why: str) -> None:
        """Removes the index's own files, and no others."""
        for name in ("data.mdb", "lock.mdb"):
            with contextlib.suppress(FileNotFoundError):
                (self.path / name).unlink()
                log.warning("index %s is discarded: %s", self.path / name, why)

    def close(self, clean: bool) -> None:
        """Gives the directory back; `clean` when all of it was written to the disk."""
        if clean:
            self._mark(_CLEAN)
        os.close(self._lock)
        if self.temporary:
            shutil.rmtree(self.path, ignore_errors=True)

    def _trusted(self) -> bool:
        try:
            format_, _, state = (self.path / "state").read_text().partition(" ")
        except OSError:
            return False
        return format_ == FORMAT and state in (_CLEAN, _boot_id())

    def _mark(self, state: str) -> None:
        fresh = self.path / "state.new"
        with open(fresh, "w") as file:
            file.write(f"{FORMAT} {state}")
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(self.path / "state")


def _temporary() -> str:
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # it is somebody's
            _remove_unowned(left)
    return tempfile.mkdtemp(prefix=_PREFIX)


def _remove_unowned(left: Path) -> None:
    if left.lstat().st_uid != os.geteuid():  # all users share the directory, and what lies in theirs may lead anywhere
        return
    (left / "state").stat()  # there is none while its owner is just about to lock it
    with open(left / "owner", "r+") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(left, ignore_errors=True)


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return "unknown-boot"

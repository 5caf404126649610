"""Who may change a directory that several nodes can reach: the holder of the newest epoch.

Each claim is a file of its own in `epochs`, made by a hard link, which on a shared file system too exactly one of many
succeeds in. Whoever finds a newer one is fenced: he changes nothing any more. A process that was stopped for long may
still write bytes that it had begun to; so a directory that was adopted is never written by its adopter, and every read
is proved.
"""

import contextlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from kvstore.errors import ChecksumMismatch, DeviceFailed, VersionMismatch
from kvstore.node.storage.files import device_errors
from kvstore.node.storage.folder import replace_file, sync_directory
from kvstore.node.storage.sealed import seal_json, unseal_json

_FOLDER = "epochs"


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim on a device's directory. owner: a name for people."""

    directory: Path
    epoch: int
    owner: str

    @classmethod
    def take(cls, directory: Path, owner: str) -> "Claim":
        """A claim newer than all others, which are void from now on. Raises DeviceFailed."""
        folder = directory / _FOLDER
        draft = folder / f"draft-{secrets.token_hex(8)}"
        with device_errors(folder):
            folder.mkdir(exist_ok=True)
            epoch = newest_epoch(directory)
            replace_file(draft, seal_json({"owner": owner}))
            try:
                while True:
                    epoch += 1
                    with contextlib.suppress(FileExistsError):
                        os.link(draft, _path(directory, epoch))
                        break
            finally:
                draft.unlink()
            sync_directory(folder)
        return cls(directory, epoch, owner)

    def check(self) -> None:
        """Raises DeviceFailed when it is void."""
        newest = newest_epoch(self.directory)
        if newest != self.epoch:
            owner = owner_of(self.directory, newest)
            raise DeviceFailed(f"{self.directory}: fenced, {owner} has it since epoch {newest}, this is {self.epoch}")


def newest_epoch(directory: Path) -> int:
    """0 where nobody ever had a claim. Raises DeviceFailed."""
    folder = directory / _FOLDER
    with device_errors(folder):
        try:
            return max((int(name) for name in os.listdir(folder) if name.isdecimal()), default=0)
        except FileNotFoundError:
            return 0


def owner_of(directory: Path, epoch: int) -> str:
    """Who had it in an epoch; "nobody known" where the file does not say."""
    try:
        return str(unseal_json(_path(directory, epoch).read_bytes())["owner"])
    except (OSError, ChecksumMismatch, VersionMismatch, KeyError, TypeError):
        return "nobody known"


def _path(directory: Path, epoch: int) -> Path:
    return directory / _FOLDER / f"{epoch:08d}"

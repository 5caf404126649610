"""Who may change a directory that several nodes can reach: the holder of the newest epoch.

Each claim is a file of its own in `epochs`, made by a hard link, which on a shared file system too exactly one of many
succeeds in. Whoever finds a newer one is fenced: he changes nothing any more. A process that was stopped for long may
still write bytes that it had begun to; so a directory that was adopted is never written by its adopter, and every read
is proved.

    OWNED ──the owner is gone──► ADOPTED ──given back──► RELEASED ──opened──► OWNED        a file, and an epoch, each
"""

import contextlib
import enum
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from kvstore.errors import ChecksumMismatch, ConfigError, DeviceFailed, InUse, VersionMismatch
from kvstore.node.storage.files import device_errors
from kvstore.node.storage.folder import replace_file, sync_directory
from kvstore.node.storage.sealed import seal_json, unseal_json

_FOLDER = "epochs"


class Standing(enum.Enum):
    """As what somebody has the directory: as his own, as one whose owner is gone, or not any more."""

    OWNED = "owned"
    ADOPTED = "adopted"
    RELEASED = "released"


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim on a device's directory. owner: a name for people."""

    directory: Path
    epoch: int
    owner: str
    standing: Standing = Standing.OWNED

    @classmethod
    def take(
        cls, directory: Path, owner: str, standing: Standing = Standing.OWNED, after: int | None = None
    ) -> "Claim":
        """A claim newer than all others, which are void from now on. after: the epoch that must be the newest until
        then. Raises InUse when it is not, DeviceFailed."""
        folder = directory / _FOLDER
        draft = folder / f"draft-{secrets.token_hex(8)}"
        with device_errors(folder):
            folder.mkdir(exist_ok=True)
            epoch = newest_epoch(directory) if after is None else after
            replace_file(draft, seal_json({"owner": owner, "standing": standing.value}))
            try:
                while True:
                    epoch += 1
                    with contextlib.suppress(FileExistsError):
                        os.link(draft, _path(directory, epoch))
                        break
                    if after is not None:
                        raise InUse(f"{directory}: {newest_claim(directory).owner} took it at this moment")
            finally:
                draft.unlink()
            sync_directory(folder)
        return cls(directory, epoch, owner, standing)

    @classmethod
    def take_own(cls, directory: Path, owner: str) -> "Claim":
        """The owner's, whoever had it before. Raises as `expect_own`, and InUse when another one came first."""
        return cls.take(directory, owner, after=cls.expect_own(directory, owner))

    @staticmethod
    def expect_own(directory: Path, owner: str) -> int:
        """The newest epoch. Raises ConfigError when another node has adopted the directory, DeviceFailed."""
        newest = newest_claim(directory)
        if newest.standing is Standing.ADOPTED and newest.owner != owner:
            raise ConfigError(
                f"{directory}: node {newest.owner} has adopted it (epoch {newest.epoch}) and serves its blocks; "
                f"have it given back first: kvstore admin adopt {newest.owner} {directory} --release"
            )
        return newest.epoch

    def check(self) -> None:
        """Raises DeviceFailed when it is void."""
        newest = newest_epoch(self.directory)
        if newest != self.epoch:
            owner = newest_claim(self.directory).owner
            raise DeviceFailed(f"{self.directory}: fenced, {owner} has it since epoch {newest}, this is {self.epoch}")

    def release(self) -> None:
        """Nobody has it any more. Raises DeviceFailed when it is void."""
        self.check()
        Claim.take(self.directory, self.owner, Standing.RELEASED, after=self.epoch)


def newest_epoch(directory: Path) -> int:
    """0 where nobody ever had a claim. Raises DeviceFailed."""
    folder = directory / _FOLDER
    with device_errors(folder):
        try:
            return max((int(name) for name in os.listdir(folder) if name.isdecimal()), default=0)
        except FileNotFoundError:
            return 0


def newest_claim(directory: Path) -> Claim:
    """Epoch 0 where nobody ever had one; the owner is "nobody known" where the file does not say. Raises
    DeviceFailed."""
    epoch = newest_epoch(directory)
    try:
        said = unseal_json(_path(directory, epoch).read_bytes())
        return Claim(directory, epoch, str(said["owner"]), Standing(said.get("standing", Standing.OWNED.value)))
    except (OSError, ChecksumMismatch, VersionMismatch, KeyError, TypeError, ValueError, AttributeError):
        return Claim(directory, epoch, "nobody known")


def _path(directory: Path, epoch: int) -> Path:
    return directory / _FOLDER / f"{epoch:08d}"

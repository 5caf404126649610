"""Which device a directory is: the lock that lets one process have it, and its identity.

The identity is a small file; where it is lost, any slab file of the device still says it.
"""

import contextlib
import errno
import fcntl
import os
import secrets
from pathlib import Path

from kvstore.errors import ChecksumMismatch, ConfigError, DeviceFailed, VersionMismatch
from kvstore.node.storage.entry import ID_BYTES
from kvstore.node.storage.files import device_errors, slab_files, slab_path
from kvstore.node.storage.folder import replace_file
from kvstore.node.storage.format import SLAB_HEADER_BYTES, parse_slab_header
from kvstore.node.storage.sealed import seal_json, unseal_json

_LOCK, _IDENTITY = "lock", "device.json"
_NO_DIRECTORY_OF_OURS = {errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP}
"""What a name that was given by mistake answers; anything else is the disk's."""


def lock_directory(path: Path) -> int:
    """Holds the directory until the descriptor is closed. One that is missing is not made: it would take the place of a
    disk that is not mounted, and fill the file system below.

    Raises ConfigError for a path that cannot be one, and when another process holds it; DeviceFailed, also for a
    missing one."""
    with device_errors(path):
        try:
            fd = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError as error:
            raise DeviceFailed(
                f"{path}: there is no such directory: mount the file system that has it, or make it: mkdir -p {path}",
                errno.ENOENT,
            ) from error
        except OSError as error:
            if error.errno not in _NO_DIRECTORY_OF_OURS:
                raise
            raise ConfigError(f"{path}: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(fd)
            raise ConfigError(f"{path}: another process uses this directory") from error
        except OSError:
            os.close(fd)
            raise
    return fd


def identify(path: Path, slab_bytes: int) -> bytes:
    """The device's id; a new one for a new device.

    Raises ConfigError when its slab files have another size, and OSError."""
    known = read_identity(path)
    if known is None:
        known = _by_slab_files(path) or (secrets.token_bytes(ID_BYTES), slab_bytes)
        _write(path, *known)
    device_id, found_bytes = known
    if found_bytes != slab_bytes:
        raise ConfigError(
            f"{path}: its slab files are of {found_bytes} bytes, not {slab_bytes}: keep that, or use an empty directory"
        )
    return device_id


def read_identity(path: Path) -> tuple[bytes, int] | None:
    """A device's id, and the size of its slab files; None where there is none, or a damaged one. Raises VersionMismatch
    for a newer one, and OSError."""
    try:
        body = unseal_json((path / _IDENTITY).read_bytes())
    except (FileNotFoundError, ChecksumMismatch):
        return None
    except VersionMismatch as error:
        raise VersionMismatch(f"{path / _IDENTITY}: {error}") from error
    return bytes.fromhex(body["id"]), body["slab_bytes"]


def _write(path: Path, device_id: bytes, slab_bytes: int) -> None:
    replace_file(path / _IDENTITY, seal_json({"id": device_id.hex(), "slab_bytes": slab_bytes}))


def _by_slab_files(path: Path) -> tuple[bytes, int] | None:
    for file in slab_files(path):
        with contextlib.suppress(ChecksumMismatch, VersionMismatch), open(slab_path(path, file), "rb") as slab:
            header = parse_slab_header(slab.read(SLAB_HEADER_BYTES))
            return header.device_id, os.fstat(slab.fileno()).st_size - SLAB_HEADER_BYTES
    return None

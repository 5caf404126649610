"""Files with secrets: nobody else's file is written, read, or left behind."""

import os
from pathlib import Path

import pytest

from kvstore.rpc import private_file
from kvstore.rpc.private_file import write_private

SERVICE = 1001


def test_a_file_is_its_owners_alone(tmp_path: Path) -> None:
    """Also where it replaces one that others could read, and nothing is left beside it."""
    path = tmp_path / "secret"
    path.touch(0o666)
    write_private(path, b"text")
    assert path.read_bytes() == b"text"
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["secret"]


def test_what_others_put_into_the_directory_is_not_written(tmp_path: Path) -> None:
    """A link or a file that waits under the name of this process's fresh file."""
    theirs = tmp_path / "theirs"
    theirs.touch(0o666)
    (tmp_path / f".secret.{os.getpid()}").symlink_to(theirs)
    write_private(tmp_path / "secret", b"text")
    assert theirs.read_bytes() == b""
    assert not (tmp_path / "secret").is_symlink()


def test_a_file_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the file that was meant, and nothing is left."""
    with pytest.raises(FileNotFoundError, match=r"'.*/nowhere/secret'"):
        write_private(tmp_path / "nowhere" / "secret", b"text")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(private_file.os, "replace", full)
    with pytest.raises(OSError, match=r"No space left.*'.*/secret'"):
        write_private(tmp_path / "secret", b"text")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root renews what is another user's")
def test_who_read_it_reads_what_is_renewed(tmp_path: Path) -> None:
    """Its owner and group stay, and what they may; a new file, and one that is not renewed, is the writer's."""
    path = tmp_path / "secret"
    write_private(path, b"first", renews=True)
    os.chown(path, SERVICE, SERVICE)
    for mode, kept in ((0o600, 0o600), (0o440, 0o640), (0o666, 0o640)):
        path.chmod(mode)
        write_private(path, b"renewed", renews=True)
        status = path.stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (SERVICE, SERVICE, kept)
    write_private(path, b"mine")
    assert (path.stat().st_uid, path.stat().st_mode & 0o777) == (0, 0o600)

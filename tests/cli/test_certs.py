"""`kvstore certs`: what it makes, and what it refuses to overwrite."""

from pathlib import Path

import pytest

from kvstore.cli.main import main


def test_an_authority_and_a_certificate(tmp_path: Path) -> None:
    """Each with its key, in the directory that is named; a name may be made again, with new files."""
    folder = str(tmp_path / "certs")
    assert main(["certs", "ca", "--dir", folder]) == 0
    assert main(["certs", "make", "node-1", "--role", "node", "--role", "control", "--dir", folder]) == 0
    assert {path.name for path in (tmp_path / "certs").iterdir()} == {"ca.key", "ca.pem", "node-1.key", "node-1.pem"}
    before = (tmp_path / "certs" / "node-1.pem").read_bytes()
    assert main(["certs", "make", "node-1", "--role", "node", "--dir", folder]) == 0
    assert (tmp_path / "certs" / "node-1.pem").read_bytes() != before


def test_an_authority_is_never_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All its certificates would be worth nothing; also where its key is kept elsewhere."""
    assert main(["certs", "ca", "--dir", str(tmp_path)]) == 0
    before = (tmp_path / "ca.pem").read_bytes()
    for _ in range(2):
        assert main(["certs", "ca", "--dir", str(tmp_path)]) == 2
        assert "exists" in capsys.readouterr().err
        assert (tmp_path / "ca.pem").read_bytes() == before
        (tmp_path / "ca.key").unlink(missing_ok=True)


@pytest.mark.parametrize("name", ["ca", "../x", "a/b", ""])
def test_names_that_are_none(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The authority's own, and paths."""
    assert main(["certs", "ca", "--dir", str(tmp_path)]) == 0
    assert main(["certs", "make", name, "--role", "node", "--dir", str(tmp_path)]) == 2
    assert "is no name of a certificate" in capsys.readouterr().err


def test_without_an_authority(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The missing file is named."""
    assert main(["certs", "make", "n", "--role", "node", "--dir", str(tmp_path)]) == 2
    assert "ca.pem: No such file or directory" in capsys.readouterr().err


@pytest.mark.parametrize("days", ["-1", "0", "99999999"])
def test_days_that_are_none(days: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No certificate that is over already takes the place of one that is good."""
    assert main(["certs", "ca", "--dir", str(tmp_path)]) == 0
    assert main(["certs", "make", "n", "--role", "node", "--dir", str(tmp_path)]) == 0
    before = (tmp_path / "n.pem").read_bytes()
    for argv in (["make", "n", "--role", "node", "--dir", str(tmp_path)], ["ca", "--dir", str(tmp_path / "new")]):
        with pytest.raises(SystemExit, match="2"):
            main(["certs", *argv, "--days", days])
        assert f"{days!r} is no whole number from 1 to 36500" in capsys.readouterr().err
    assert (tmp_path / "n.pem").read_bytes() == before
    assert not (tmp_path / "new").exists()

"""`kvstore tokens`: makes, lists and revokes; what it prints, and what it keeps to itself."""

import json
from pathlib import Path

import pytest

from kvstore.blocks.salt import UNSALTED
from kvstore.cli.main import main
from kvstore.rpc.tokens import digest_of, read_tokens
from tests.certs import unsalted


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["tokens", *argv]) == 0
    return capsys.readouterr().out


def test_a_token_is_shown_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """When it is made; the file is its owner's alone and holds its hash."""
    file = str(tmp_path / "made" / "tokens.toml")
    secret = run(capsys, "add", "prefill", "--tenant", "acme", "--file", file).strip()
    assert Path(file).stat().st_mode & 0o777 == 0o600
    assert digest_of(secret) in read_tokens(file).by_sha256
    listed = run(capsys, "list", "--file", file)
    assert "prefill" in listed
    assert "acme" in listed
    assert secret not in listed + Path(file).read_text()


def test_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every verb; the list has no hashes."""
    file = str(tmp_path / "tokens.toml")
    added = json.loads(run(capsys, "add", "anna", "--admin", "read", "--days", "7", "--json", "--file", file))
    assert added["name"] == "anna"
    assert digest_of(added["token"]) in read_tokens(file).by_sha256
    (listed,) = json.loads(run(capsys, "list", "--json", "--file", file))["tokens"]
    assert set(listed) == {"name", "tenant", "admin", "created", "expires"}
    assert (listed["name"], listed["tenant"], listed["admin"]) == ("anna", "", "read")
    assert listed["expires"] > listed["created"]
    (revoked,) = json.loads(run(capsys, "revoke", "anna", "--json", "--file", file))["tokens"]
    assert revoked == listed
    assert json.loads(run(capsys, "list", "--json", "--file", file)) == {"tokens": [], "salted": True}


def test_into_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For a process to show: nothing comes on the screen, and others cannot read it."""
    file, out = str(tmp_path / "tokens.toml"), tmp_path / "secret"
    assert run(capsys, "add", "a", "--tenant", "t", "--file", file, "--out", str(out)) == ""
    assert out.stat().st_mode & 0o777 == 0o600
    assert digest_of(out.read_text().strip()) in read_tokens(file).by_sha256


@pytest.mark.parametrize("out", ["none/secret", "folder", "tokens.toml"])
def test_a_file_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str) -> None:
    """There is no token then that nobody has, and no secret lies about."""
    (tmp_path / "folder").mkdir()
    file = str(tmp_path / "tokens.toml")
    run(capsys, "add", "first", "--tenant", "t", "--file", file)
    before = Path(file).read_bytes()
    assert main(["tokens", "add", "a", "--tenant", "t", "--file", file, "--out", str(tmp_path / out)]) == 2
    assert out in capsys.readouterr().err
    assert Path(file).read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "tokens.toml"}


@pytest.mark.parametrize("days", ["-1", "36501", "99999999", "1.5", "soon"])
def test_days_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str], days: str) -> None:
    """Past the calendar's end too; nothing is made."""
    file = tmp_path / "tokens.toml"
    with pytest.raises(SystemExit, match="2"):
        main(["tokens", "add", "a", "--tenant", "t", "--file", str(file), "--days", days])
    assert f"{days!r} is no whole number from 0 to 36500" in capsys.readouterr().err
    assert not file.exists()


def test_a_file_that_is_made_has_a_salt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its own, which every later change keeps; no verb shows it."""
    file, other = str(tmp_path / "tokens.toml"), str(tmp_path / "other.toml")
    shown = run(capsys, "add", "a", "--tenant", "t", "--file", file)
    salt = read_tokens(file).salt
    shown += run(capsys, "add", "b", "--tenant", "t", "--file", file) + run(capsys, "revoke", "a", "--file", file)
    shown += run(capsys, "list", "--file", file) + run(capsys, "list", "--json", "--file", file)
    assert read_tokens(file).salt == salt
    assert salt.secret.hex() in Path(file).read_text()
    assert salt.secret.hex() not in shown
    assert "not salted" not in shown
    run(capsys, "add", "a", "--tenant", "t", "--file", other)
    assert read_tokens(other).salt not in (salt, UNSALTED)


def test_a_file_without_a_salt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stays so until it is given one, of which is said what it does; another one only where that is asked for."""
    file = str(tmp_path / "tokens.toml")
    run(capsys, "add", "a", "--tenant", "t", "--file", file)
    unsalted(Path(file))
    run(capsys, "add", "b", "--tenant", "t", "--file", file)
    assert read_tokens(file).salt == UNSALTED
    assert "keys are not salted: `kvstore tokens salt`" in run(capsys, "list", "--file", file)
    assert json.loads(run(capsys, "list", "--json", "--file", file))["salted"] is False
    said = run(capsys, "salt", "--file", file)
    first = read_tokens(file)
    assert (bool(first.salt), len(first.by_sha256)) == (True, 2)
    assert "restart them" in said
    assert first.salt.secret.hex() not in said
    assert Path(file).stat().st_mode & 0o777 == 0o600
    assert main(["tokens", "salt", "--file", file]) == 2
    assert "has a salt already" in capsys.readouterr().err
    assert read_tokens(file).salt == first.salt
    assert json.loads(run(capsys, "salt", "--renew", "--json", "--file", file)) == {"salted": True}
    assert read_tokens(file).salt not in (first.salt, UNSALTED)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["add", "a b", "--tenant", "t"], "a name is of letters"),
        (["add", "a", "--tenant", "t\n"], "either a tenant's name"),
        (["revoke", "nobody"], "has no token 'nobody'"),
        (["list"], "No such file"),
        (["salt"], "no such file"),
    ],
)
def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], said: str) -> None:
    """In one line, and the file stays as it was: there is none."""
    file = tmp_path / "tokens.toml"
    assert main(["tokens", *argv, "--file", str(file)]) == 2
    assert said in capsys.readouterr().err
    assert not file.exists()

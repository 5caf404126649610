"""`kvstore tokens`: makes, lists and revokes; what it prints, and what it keeps to itself."""

import json
from pathlib import Path

import pytest

from kvstore.cli.main import main
from kvstore.rpc.tokens import digest_of, read_tokens


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["tokens", *argv]) == 0
    return capsys.readouterr().out


def test_a_token_is_shown_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """When it is made; the file is its owner's alone and holds its hash."""
    file = str(tmp_path / "made" / "tokens.toml")
    secret = run(capsys, "add", "prefill", "--tenant", "acme", "--file", file).strip()
    assert Path(file).stat().st_mode & 0o777 == 0o600
    assert digest_of(secret) in read_tokens(file)
    listed = run(capsys, "list", "--file", file)
    assert "prefill" in listed
    assert "acme" in listed
    assert secret not in listed + Path(file).read_text()


def test_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every verb; the list has no hashes."""
    file = str(tmp_path / "tokens.toml")
    added = json.loads(run(capsys, "add", "anna", "--admin", "read", "--days", "7", "--json", "--file", file))
    assert added["name"] == "anna"
    assert digest_of(added["token"]) in read_tokens(file)
    (listed,) = json.loads(run(capsys, "list", "--json", "--file", file))["tokens"]
    assert set(listed) == {"name", "tenant", "admin", "created", "expires"}
    assert (listed["name"], listed["tenant"], listed["admin"]) == ("anna", "", "read")
    assert listed["expires"] > listed["created"]
    (revoked,) = json.loads(run(capsys, "revoke", "anna", "--json", "--file", file))["tokens"]
    assert revoked == listed
    assert json.loads(run(capsys, "list", "--json", "--file", file)) == {"tokens": []}


def test_into_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For a process to show: nothing comes on the screen, and others cannot read it."""
    file, out = str(tmp_path / "tokens.toml"), tmp_path / "secret"
    assert run(capsys, "add", "a", "--tenant", "t", "--file", file, "--out", str(out)) == ""
    assert out.stat().st_mode & 0o777 == 0o600
    assert digest_of(out.read_text().strip()) in read_tokens(file)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["add", "a b", "--tenant", "t"], "a name is of letters"),
        (["add", "a", "--tenant", "t\n"], "either a tenant's name"),
        (["add", "a", "--tenant", "t", "--days", "-1"], "are over already"),
        (["revoke", "nobody"], "has no token 'nobody'"),
        (["list"], "No such file"),
    ],
)
def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], said: str) -> None:
    """In one line, and the file stays as it was: there is none."""
    file = tmp_path / "tokens.toml"
    assert main(["tokens", *argv, "--file", str(file)]) == 2
    assert said in capsys.readouterr().err
    assert not file.exists()

"""Tokens: what their file may say, and that it is read anew."""

from pathlib import Path

import pytest

from kvstore.cli.tokens import add_token, revoke_token, salt_file
from kvstore.config import DoorConfig
from kvstore.errors import ConfigError
from kvstore.rpc import renewed
from kvstore.rpc.channel import open_channel
from kvstore.rpc.guard import guards
from kvstore.rpc.tokens import KnownTokens, Token, borne, digest_of, read_tokens
from tests.certs import unsalted

DIGEST = "0" * 64


def written(folder: Path, text: str) -> str:
    path = folder / "tokens.toml"
    path.write_text(text)
    path.chmod(0o600)
    return str(path)


def test_a_token_is_found_by_its_hash(tmp_path: Path) -> None:
    """The file holds nothing by which it could be shown."""
    path = tmp_path / "tokens.toml"
    secret = add_token(path, "acme-1", tenant="acmé \U0001f600")
    assert secret not in path.read_text()
    token = read_tokens(str(path)).by_sha256[digest_of(secret)]
    assert (token.name, token.tenant, token.admin, token.expires) == ("acme-1", "acmé \U0001f600", "", None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tokens = 1", "tables [tokens.NAME] are needed"),
        ("[others]", "tables [tokens.NAME] are needed"),
        ("[tokens.'a b']", "a name is of letters"),
        ("tokens.a = 1", "are what a token has"),
        (f"[tokens.a]\nsha256 = '{DIGEST}'", "either a tenant is needed, or admin"),
        (f"[tokens.a]\ntenant = 't'\nadmin = 'read'\nsha256 = '{DIGEST}'", "either a tenant is needed, or admin"),
        (f"[tokens.a]\nadmin = 'all'\nsha256 = '{DIGEST}'", "read or operate"),
        (f"[tokens.a]\nadmin = []\nsha256 = '{DIGEST}'", "either a tenant is needed"),
        (f"[tokens.a]\nadmin = ['read']\nsha256 = '{DIGEST}'", "either a tenant is needed"),
        ("[tokens.a]\ntenant = 't'", "sha256 is needed"),
        ("[tokens.a]\ntenant = 't'\nsha256 = 'ABC'", "sha256 is needed"),
        (f"[tokens.a]\ntenant = 't'\nsha256 = '{DIGEST}'\nexpires = 2026-01-01", "a time with its zone"),
        (f"[tokens.a]\ntenant = 't'\nsha256 = '{DIGEST}'\nright = 'x'", "are what a token has"),
        (
            f"[tokens.a]\ntenant = 't'\nsha256 = '{DIGEST}'\n[tokens.b]\ntenant = 'u'\nsha256 = '{DIGEST}'",
            "two have the same sha256",
        ),
        ("salt = 1", "salt: 64 hexadecimal digits"),
        ("salt = ''", "salt: 64 hexadecimal digits"),
        (f"salt = '{'AB' * 32}'", "salt: 64 hexadecimal digits"),
        ("\0", "tokens.toml"),
    ],
)
def test_what_is_no_file_of_tokens(tmp_path: Path, text: str, said: str) -> None:
    """Is refused as a whole, with the place."""
    with pytest.raises(ConfigError) as refused:
        read_tokens(written(tmp_path, text))
    assert said in str(refused.value)


def test_a_file_that_others_may_write_is_refused(tmp_path: Path) -> None:
    """Whoever can would be anybody."""
    path = tmp_path / "tokens.toml"
    add_token(path, "a", admin="read")
    path.chmod(0o620)
    with pytest.raises(ConfigError, match="others may write it: chmod 600"):
        read_tokens(str(path))


def test_a_salt_that_everybody_may_read_is_refused(tmp_path: Path) -> None:
    """It is a secret. A group's members may, and hashes alone are none."""
    path = tmp_path / "tokens.toml"
    add_token(path, "a", admin="read")
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="everybody may read it, and its salt is a secret: chmod 600"):
        read_tokens(str(path))
    path.chmod(0o640)
    assert read_tokens(str(path)).salt
    unsalted(path)
    path.chmod(0o644)
    assert not read_tokens(str(path)).salt


def test_no_text_shows_the_salt(tmp_path: Path) -> None:
    """Neither of what was read, nor of why it was not."""
    path = tmp_path / "tokens.toml"
    add_token(path, "a", admin="read")
    salt = read_tokens(str(path)).salt.secret
    assert len(salt) == 32
    assert not shows(repr(read_tokens(str(path))), salt)
    path.write_text(path.read_text().replace(salt.hex(), salt.hex() + "x"))
    with pytest.raises(ConfigError, match="hexadecimal") as refused:
        read_tokens(str(path))
    assert not shows(str(refused.value), salt)


def shows(text: str, salt: bytes) -> bool:
    return salt.hex()[:16] in text or repr(salt)[2:16] in text


def test_a_changed_salt_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each time that the file is read anew; tokens count at once."""
    monkeypatch.setattr(renewed, "LOOK_S", 0.0)
    path = tmp_path / "tokens.toml"
    add_token(path, "a", admin="read")
    known = KnownTokens(str(path))
    secret = add_token(path, "b", admin="read")
    assert isinstance(known.find(digest_of(secret)), Token)
    assert "its salt has changed" not in caplog.text
    salt_file(path, renew=True)
    assert isinstance(known.find(digest_of(secret)), Token)
    assert "its salt has changed, which counts only after a restart: of all servers" in caplog.text
    assert not shows(caplog.text, read_tokens(str(path)).salt.secret)


def test_names_are_used_once(tmp_path: Path) -> None:
    """Until they are revoked; what is not there cannot be."""
    path = tmp_path / "tokens.toml"
    add_token(path, "a", admin="read")
    with pytest.raises(ConfigError, match="has a token a already"):
        add_token(path, "a", admin="operate")
    assert revoke_token(path, "a").admin == "read"
    with pytest.raises(ConfigError, match="has no token 'a'"):
        revoke_token(path, "a")
    assert read_tokens(str(path)).by_sha256 == {}


def test_tokens_need_a_shut_door(tmp_path: Path) -> None:
    """On the server's side, and where one would be sent."""
    with pytest.raises(ConfigError, match=r"door\.tokens: tokens need a shut door"):
        guards(DoorConfig(tokens=str(tmp_path / "tokens.toml")))
    secret = tmp_path / "secret"
    secret.write_text(add_token(tmp_path / "tokens.toml", "a", admin="read"))
    with pytest.raises(ConfigError, match=r"not sent to 127\.0\.0\.1:1 unencrypted"):
        open_channel("127.0.0.1:1", door=DoorConfig(token_file=str(secret)))


def test_a_file_without_a_token_is_refused(tmp_path: Path) -> None:
    """Without its text, which may be a secret of another kind."""
    secret = tmp_path / "secret"
    secret.write_text("hunter2\n")
    with pytest.raises(ConfigError, match="no token of `kvstore tokens add`") as refused:
        open_channel("unix:/nowhere", door=DoorConfig(token_file=str(secret)))
    assert "hunter2" not in str(refused.value)
    with pytest.raises(ConfigError, match="No such file"):
        open_channel("unix:/nowhere", door=DoorConfig(token_file=str(tmp_path / "missing")))


@pytest.mark.parametrize(
    ("metadata", "token"),
    [
        (None, ""),
        ([("authorization", "Bearer x")], "x"),
        ([("authorization", b"Bearer x")], ""),
        ([("authorization", "Basic x")], ""),
        ([("other", "Bearer x")], ""),
    ],
)
def test_what_a_call_bears(metadata: object, token: str) -> None:
    """Other schemes, and what is no text, are no token."""
    assert borne(metadata) == token

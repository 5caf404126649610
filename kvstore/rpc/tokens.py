"""Tokens: who a client is, where certificates say only that it is one.

A token is a secret of 256 random bits, so its plain SHA-256 is enough to know it by, and all that the file of a server
(`door.tokens`) holds of it. The file is TOML, one table per token, and before them the salt of the cluster's keys
(`kvstore.blocks.salt`), which is a secret; `kvstore tokens` writes it:

    salt = "4d5e…"              # 64 hexadecimal digits; left out: keys are not salted
    [tokens.acme-prefill]
    tenant = "acme"             # whose namespaces it opens; or admin = "read" | "operate"
    sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    created = 2026-11-28T18:00:00Z
    expires = 2027-11-28T18:00:00Z   # left out: never
"""

import hashlib
import logging
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import grpc.aio

from kvstore.blocks.salt import SALT_BYTES, UNSALTED, Salt
from kvstore.config import DoorConfig, read_tables
from kvstore.errors import ConfigError
from kvstore.rpc.metadata import adding
from kvstore.rpc.renewed import Renewed

ADMIN = ("read", "operate")
"""What an admin's token may be for; `operate` reads too."""
METADATA_KEY = "authorization"
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SCHEME = "Bearer "
_SECRET = re.compile(r"kvs_[A-Za-z0-9_-]{43}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_FIELDS = {"tenant", "admin", "sha256", "created", "expires"}
_WRITABLE_BY_OTHERS = 0o022
_READABLE_BY_ALL = 0o004
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Token:
    """What is known of one. Either `tenant` or `admin` is set; expires: None for never."""

    name: str
    tenant: str
    admin: str
    sha256: str
    created: datetime
    expires: datetime | None = None

    def expired(self, now: datetime) -> bool:
        return self.expires is not None and now >= self.expires


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a file says. salt: none where it has none."""

    by_sha256: Mapping[str, Token]
    salt: Salt = UNSALTED


def new_secret() -> str:
    return f"kvs_{secrets.token_urlsafe(32)}"


def new_salt() -> Salt:
    return Salt(secrets.token_bytes(SALT_BYTES))


def digest_of(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="surrogateescape")).hexdigest()


def read_tokens(path: str) -> Tokens:
    """What a file says, of expired ones too. Raises ConfigError, with the token's name."""
    try:
        mode = Path(path).stat().st_mode
    except OSError as error:
        raise ConfigError(f"tokens {path}: {error.strerror}") from error
    if mode & _WRITABLE_BY_OTHERS:
        raise ConfigError(f"tokens {path}: others may write it: chmod 600")
    tables = read_tables(path)
    salt = _salt(path, tables.pop("salt", None))
    if salt and mode & _READABLE_BY_ALL:
        raise ConfigError(f"tokens {path}: everybody may read it, and its salt is a secret: chmod 600")
    listed = tables.pop("tokens", {})
    if tables or not isinstance(listed, dict):
        raise ConfigError(f"tokens {path}: a salt and tables [tokens.NAME] are needed and nothing else")
    tokens = [_token(f"{path} [tokens.{name}]", name, fields) for name, fields in listed.items()]
    known = {token.sha256: token for token in tokens}
    if len(known) < len(tokens):
        raise ConfigError(f"tokens {path}: two have the same sha256")
    return Tokens(known, salt)


def salt_of(door: DoorConfig) -> Salt:
    """By which a server salts keys, for as long as it runs; none where no tokens are asked. Raises ConfigError."""
    return read_tokens(door.tokens).salt if door.tokens else UNSALTED


class KnownTokens:
    """The file of a configuration, read anew when it changes. Raises ConfigError."""

    def __init__(self, path: str) -> None:
        self._tokens = _renewed_tokens(path)

    def find(self, digest: str) -> Token | str:
        """A token that holds now, or why there is none."""
        token = self._tokens().by_sha256.get(digest)
        if token is None:
            return "the token is unknown or revoked"
        return f"the token {token.name} has expired" if token.expired(datetime.now(UTC)) else token


@cache
def _renewed_tokens(path: str) -> Renewed[Tokens]:
    at_start = read_tokens(path).salt

    def read() -> Tokens:
        tokens = read_tokens(path)
        if tokens.salt != at_start:
            log.warning("tokens %s: its salt has changed, which counts only after a restart: of all servers", path)
        return tokens

    return Renewed((path,), read)


def shown_token(door: DoorConfig, token: str = "") -> Callable[[], str]:
    """What gives the token that a process shows: `token`, else what its file says then, "" without a file. Raises
    ConfigError."""
    return _shown(door.token_file) if door.token_file and not token else lambda: token


@cache
def _shown(path: str) -> Renewed[str]:
    return Renewed((path,), lambda: _secret(path))


def _secret(path: str) -> str:
    try:
        text = Path(path).read_text(errors="replace").strip()
    except OSError as error:
        raise ConfigError(f"token file {path}: {error.strerror}") from error
    return expect_secret(text, f"token file {path}")


def expect_secret(text: str, where: str) -> str:
    """The text, which may be secret: errors do not repeat it. Raises ConfigError for what is no token."""
    if not _SECRET.fullmatch(text):
        raise ConfigError(f"{where}: no token of `kvstore tokens add` (kvs_…)")
    return text


def bearing(channel: grpc.aio.Channel, token: Callable[[], str]) -> grpc.aio.Channel:
    """The channel, whose calls show a token from now on, each the one that holds then."""
    return adding(channel, lambda: [(METADATA_KEY, _SCHEME + token())])


def borne(metadata: Any) -> str:
    """The token that a call shows, by its metadata or headers; "" for none."""
    for key, value in metadata or ():
        if key == METADATA_KEY and isinstance(value, str) and value.startswith(_SCHEME):
            return value.removeprefix(_SCHEME)
    return ""


def _salt(path: str, text: Any) -> Salt:
    """text: None for none. Errors do not repeat it."""
    if text is None:
        return UNSALTED
    if not isinstance(text, str) or not _DIGEST.fullmatch(text):
        raise ConfigError(f"tokens {path}: salt: {2 * SALT_BYTES} hexadecimal digits in lower case are needed")
    return Salt(bytes.fromhex(text))


def _token(where: str, name: str, fields: Any) -> Token:
    if not NAME.fullmatch(name):
        raise ConfigError(f"{where}: a name is of letters, digits, - and _, 64 at most")
    if not isinstance(fields, dict) or not fields.keys() <= _FIELDS:
        raise ConfigError(f"{where}: {', '.join(sorted(_FIELDS))} are what a token has")
    tenant, admin = fields.get("tenant", ""), fields.get("admin", "")
    if not isinstance(tenant, str) or bool(tenant) == bool(admin) or (admin and admin not in ADMIN):
        raise ConfigError(f"{where}: either a tenant is needed, or admin: {' or '.join(ADMIN)}")
    digest = fields.get("sha256")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise ConfigError(f"{where}: sha256 is needed, 64 digits in lower case")
    created, expires = _moment(where, "created", fields), _moment(where, "expires", fields)
    return Token(name, tenant, admin, digest, created or datetime.fromtimestamp(0, UTC), expires)


def _moment(where: str, name: str, fields: Mapping[str, Any]) -> datetime | None:
    value = fields.get(name)
    if value is not None and (not isinstance(value, datetime) or value.tzinfo is None):
        raise ConfigError(f"{where}: {name}: a time with its zone is needed: 2026-11-28T18:00:00Z")
    return value

"""Makes tokens for tenants and admins, lists them, and revokes them, in the file that servers read (`door.tokens`).

`kvstore tokens add NAME --tenant acme` prints the token, once: the file holds only its hash. Servers take the changed
file into use within a second; a revoked token is worth nothing from then on. Who shows a token needs a client's
certificate too, or the node's unix socket (docs/security.md).

A file that `add` makes has a salt: a secret of the servers alone, by which no tenant can guess the names of another's
blocks. `salt` gives one to a file without. All servers have the same file.
"""

import argparse
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from kvstore.blocks.salt import Salt
from kvstore.cli.options import DAYS_MAX, whole
from kvstore.cli.tables import show, table
from kvstore.cli.toml import toml_string
from kvstore.errors import ConfigError
from kvstore.rpc.private_file import write_private
from kvstore.rpc.tokens import ADMIN, NAME, Token, digest_of, new_salt, new_secret, read_tokens

_UNSALTED = "keys are not salted: `kvstore tokens salt`"
_SALTED = (
    "the file has a new salt: copy it to all servers and restart them; what is stored matches nothing from then on"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--file", type=Path, default=Path("tokens.toml"), metavar="FILE", help="of the tokens (default: %(default)s)"
    )
    shared.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    add = verbs.add_parser("add", parents=[shared], help="makes a token, and shows it this once")
    add.add_argument("name", metavar="NAME", help="by which it is listed and revoked")
    holder = add.add_mutually_exclusive_group(required=True)
    holder.add_argument("--tenant", default="", metavar="NAME", help="it opens this tenant's namespaces")
    holder.add_argument("--admin", default="", choices=ADMIN, help="it is for kvstore admin and the page")
    add.add_argument(
        "--days", type=whole(0, DAYS_MAX), default=0, metavar="N", help="how long it is good; 0: until it is revoked"
    )
    add.add_argument("--out", type=Path, metavar="FILE", help="the token goes there (0600) instead of on the screen")
    add.set_defaults(do=_add)
    listing = verbs.add_parser("list", parents=[shared], help="tokens and what they are for")
    listing.set_defaults(do=_list)
    revoke = verbs.add_parser("revoke", parents=[shared], help="a token is worth nothing any more")
    revoke.add_argument("name", metavar="NAME")
    revoke.set_defaults(do=_revoke)
    salt = verbs.add_parser(
        "salt",
        parents=[shared],
        help="gives a salt to a file that has none. All servers need that file then, and a restart; blocks that are"
        " stored match nothing from then on, and go when their time is over",
    )
    salt.add_argument("--renew", action="store_true", help="another one in place of that which is there")
    salt.set_defaults(do=_salt)


def run(args: argparse.Namespace) -> int:
    try:
        args.do(args)
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}") from error
    return 0


def add_token(
    file: Path, name: str, *, tenant: str = "", admin: str = "", days: int = 0, out: Path | None = None
) -> str:
    """Adds a token to the file, which is made where there is none, and returns it.

    out: a file that it is written to before it is good. Raises ConfigError, and OSError for files.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(f"tokens: {name!r}: a name is of letters, digits, - and _, 64 at most")
    if bool(tenant) == bool(admin) or not tenant.isprintable():
        raise ConfigError(f"tokens: either a tenant's name, printable, or admin is needed, not {tenant!r}")
    if out is not None and out.resolve() == file.resolve():
        raise ConfigError(f"tokens: {out}: the token goes into another file than the one of all tokens")
    secret, created = new_secret(), datetime.now(UTC).replace(microsecond=0)
    expires = created + timedelta(days=days) if days else None
    with _changing(file) as said:
        if name in said.tokens:
            raise ConfigError(f"{file} has a token {name} already: revoke it first")
        said.tokens[name] = Token(name, tenant, admin, digest_of(secret), created, expires)
        if out is not None:
            write_private(out, f"{secret}\n".encode())
    return secret


def revoke_token(file: Path, name: str) -> Token:
    """Takes a token out of the file, and returns what was known of it. Raises ConfigError."""
    with _changing(file) as said:
        if name not in said.tokens:
            raise ConfigError(f"{file} has no token {name!r}")
        return said.tokens.pop(name)


def salt_file(file: Path, *, renew: bool = False) -> None:
    """Gives the file a salt. Raises ConfigError where it has one that is not to be renewed, and where there is no
    file."""
    if not file.exists():
        raise ConfigError(f"{file}: no such file: `kvstore tokens add` makes one, with a salt")
    with _changing(file) as said:
        if said.salt and not renew:
            raise ConfigError(f"{file} has a salt already; with another one (--renew) all that is stored is lost")
        said.salt = new_salt()


def _add(args: argparse.Namespace) -> None:
    secret = add_token(args.file, args.name, tenant=args.tenant, admin=args.admin, days=args.days, out=args.out)
    said = {"name": args.name, "token": secret}
    if args.out is not None:
        said = {"name": args.name, "token_file": str(args.out)}
    if args.json:
        print(json.dumps(said))
    elif args.out is None:
        print(secret)


def _list(args: argparse.Namespace) -> None:
    said = read_tokens(str(args.file))
    _show(args, [*said.by_sha256.values()], {"salted": bool(said.salt)}, *[] if said.salt else [_UNSALTED])


def _revoke(args: argparse.Namespace) -> None:
    _show(args, [revoke_token(args.file, args.name)], {})


def _salt(args: argparse.Namespace) -> None:
    salt_file(args.file, renew=args.renew)
    print(json.dumps({"salted": True}) if args.json else _SALTED)


def _show(args: argparse.Namespace, tokens: list[Token], beside: dict[str, Any], *lines: str) -> None:
    if args.json:
        print(json.dumps({"tokens": [_told(token) for token in tokens], **beside}))
        return
    now = datetime.now(UTC)
    rows = [
        (
            token.name,
            token.tenant or "",
            token.admin or "",
            str(token.created.date()),
            f"{token.expires.date()}{' (over)' * token.expired(now)}" if token.expires else "never",
        )
        for token in tokens
    ]
    show(table(("token", "tenant", "admin", "created", "expires"), rows), *lines)


def _told(token: Token) -> dict[str, Any]:
    told = asdict(token)
    del told["sha256"]
    return told | {"created": token.created.isoformat(), "expires": token.expires and token.expires.isoformat()}


@dataclass(slots=True)
class _Said:
    """What a file says, to be changed. tokens: by name."""

    tokens: dict[str, Token]
    salt: Salt


@contextmanager
def _changing(file: Path) -> Iterator[_Said]:
    """What the file says, or a new one is to say; what becomes of it is written when the block ends well. One at a
    time."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        said = _said(file) if file.exists() else _Said({}, new_salt())
        yield said
        salt = [f'salt = "{said.salt.secret.hex()}"\n'] if said.salt else []
        write_private(file, "\n".join([*salt, *map(_text, said.tokens.values())]).encode(), renews=True)
    finally:
        os.close(folder)


def _said(file: Path) -> _Said:
    tokens = read_tokens(str(file))
    return _Said({token.name: token for token in tokens.by_sha256.values()}, tokens.salt)


def _text(token: Token) -> str:
    lines = [f"[tokens.{token.name}]"]
    lines += [f"tenant = {toml_string(token.tenant)}"] if token.tenant else []
    lines += [f'admin = "{token.admin}"'] if token.admin else []
    lines += [f'sha256 = "{token.sha256}"', f"created = {token.created.isoformat()}"]
    lines += [f"expires = {token.expires.isoformat()}"] if token.expires else []
    return "\n".join([*lines, ""])

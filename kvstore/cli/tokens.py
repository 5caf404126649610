"""Makes tokens for tenants and admins, lists them, and revokes them, in the file that servers read (`door.tokens`).

`kvstore tokens add NAME --tenant acme` prints the token, once: the file holds only its hash. Servers take the changed
file into use within a second; a revoked token is worth nothing from then on. Who shows a token needs a client's
certificate too, or the node's unix socket (docs/security.md).
"""

import argparse
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from kvstore.cli.private_file import write_private
from kvstore.cli.tables import show, table
from kvstore.cli.toml import toml_string
from kvstore.errors import ConfigError
from kvstore.rpc.tokens import ADMIN, NAME, Token, digest_of, new_secret, read_tokens


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
    add.add_argument("--days", type=int, default=0, metavar="N", help="how long it is good; 0: until it is revoked")
    add.add_argument("--out", type=Path, metavar="FILE", help="the token goes there (0600) instead of on the screen")
    add.set_defaults(do=_add)
    listing = verbs.add_parser("list", parents=[shared], help="tokens and what they are for")
    listing.set_defaults(do=_list)
    revoke = verbs.add_parser("revoke", parents=[shared], help="a token is worth nothing any more")
    revoke.add_argument("name", metavar="NAME")
    revoke.set_defaults(do=_revoke)


def run(args: argparse.Namespace) -> int:
    try:
        args.do(args)
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}") from error
    return 0


def add_token(file: Path, name: str, *, tenant: str = "", admin: str = "", days: int = 0) -> str:
    """Adds a token to the file, which is made where there is none, and returns it. Raises ConfigError."""
    if not NAME.fullmatch(name):
        raise ConfigError(f"tokens: {name!r}: a name is of letters, digits, - and _, 64 at most")
    if bool(tenant) == bool(admin) or not tenant.isprintable():
        raise ConfigError(f"tokens: either a tenant's name, printable, or admin is needed, not {tenant!r}")
    if days < 0:
        raise ConfigError(f"tokens: {days} days are over already")
    secret, created = new_secret(), datetime.now(UTC).replace(microsecond=0)
    expires = created + timedelta(days=days) if days else None
    with _changing(file) as tokens:
        if name in tokens:
            raise ConfigError(f"{file} has a token {name} already: revoke it first")
        tokens[name] = Token(name, tenant, admin, digest_of(secret), created, expires)
    return secret


def revoke_token(file: Path, name: str) -> Token:
    """Takes a token out of the file, and returns what was known of it. Raises ConfigError."""
    with _changing(file) as tokens:
        if name not in tokens:
            raise ConfigError(f"{file} has no token {name!r}")
        return tokens.pop(name)


def _add(args: argparse.Namespace) -> None:
    secret = add_token(args.file, args.name, tenant=args.tenant, admin=args.admin, days=args.days)
    said = {"name": args.name, "token": secret}
    if args.out is not None:
        write_private(args.out, f"{secret}\n".encode())
        said = {"name": args.name, "token_file": str(args.out)}
    if args.json:
        print(json.dumps(said))
    elif args.out is None:
        print(secret)


def _list(args: argparse.Namespace) -> None:
    _show(args, [*read_tokens(str(args.file)).values()])


def _revoke(args: argparse.Namespace) -> None:
    _show(args, [revoke_token(args.file, args.name)])


def _show(args: argparse.Namespace, tokens: list[Token]) -> None:
    if args.json:
        print(json.dumps({"tokens": [_told(token) for token in tokens]}))
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
    show(table(("token", "tenant", "admin", "created", "expires"), rows))


def _told(token: Token) -> dict[str, Any]:
    told = asdict(token)
    del told["sha256"]
    return told | {"created": token.created.isoformat(), "expires": token.expires and token.expires.isoformat()}


@contextmanager
def _changing(file: Path) -> Iterator[dict[str, Token]]:
    """The tokens by name; what is left of them is written when the block ends well. One at a time."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        tokens = {token.name: token for token in read_tokens(str(file)).values()} if file.exists() else {}
        yield tokens
        write_private(file, "\n".join(map(_text, tokens.values())).encode())
    finally:
        os.close(folder)


def _text(token: Token) -> str:
    lines = [f"[tokens.{token.name}]"]
    lines += [f"tenant = {toml_string(token.tenant)}"] if token.tenant else []
    lines += [f'admin = "{token.admin}"'] if token.admin else []
    lines += [f'sha256 = "{token.sha256}"', f"created = {token.created.isoformat()}"]
    lines += [f"expires = {token.expires.isoformat()}"] if token.expires else []
    return "\n".join([*lines, ""])

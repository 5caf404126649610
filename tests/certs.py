"""Certificates and tokens for tests: a CA of the cluster, one of strangers, and what each process shows."""

from dataclasses import replace
from pathlib import Path

from kvstore.cli.certs import make_ca, make_certificate
from kvstore.cli.tokens import add_token
from kvstore.config import DoorConfig
from kvstore.rpc.private_file import write_private

ROLES = ("control", "node", "client")


class Certs:
    """Two authorities in a directory, with a certificate of each role."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for authority in ("cluster", "strangers"):
            make_ca(folder / authority)
            for role in ROLES:
                make_certificate(folder / authority, role, [role])

    def door(self, role: str, authority: str = "cluster") -> DoorConfig:
        """What the holder of that role shows; it believes its own authority."""
        own = self.folder / authority
        return DoorConfig(cert=str(own / f"{role}.pem"), key=str(own / f"{role}.key"), ca=str(own / "ca.pem"))

    @property
    def tokens(self) -> Path:
        """The file in which servers look tokens up."""
        return self.folder / "tokens.toml"

    def server(self, role: str) -> DoorConfig:
        """A process that asks clients for tokens."""
        return replace(self.door(role), tokens=str(self.tokens))

    def holder(self, name: str, **of: str) -> DoorConfig:
        """A client with a token, which is made where there is none of that name: tenant="…", or admin="…"."""
        file = self.secret_file(name)
        if not file.exists():
            write_private(file, add_token(self.tokens, name, **of).encode())
        return replace(self.door("client"), token_file=str(file))

    def secret_file(self, name: str) -> Path:
        return self.folder / f"{name}.token"

    def secret(self, name: str) -> str:
        """A token that was made."""
        return self.secret_file(name).read_text()

    def stranger(self, role: str) -> DoorConfig:
        """One that knows the cluster's authority, and shows a certificate of another."""
        return replace(self.door(role, "strangers"), ca=str(self.folder / "cluster" / "ca.pem"))


def unsalted(file: Path) -> None:
    """Takes the salt out of a file of tokens, as one that was written by hand has none."""
    first, _, rest = file.read_text().partition("\n")
    assert first.startswith("salt = ")
    file.write_text(rest)

"""Certificates for tests: a CA of the cluster, one of strangers, and what each process shows."""

from dataclasses import replace
from pathlib import Path

from kvstore.cli.certs import make_ca, make_certificate
from kvstore.config import DoorConfig

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

    def stranger(self, role: str) -> DoorConfig:
        """One that knows the cluster's authority, and shows a certificate of another."""
        return replace(self.door(role, "strangers"), ca=str(self.folder / "cluster" / "ca.pem"))

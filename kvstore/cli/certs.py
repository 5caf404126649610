"""Makes a certificate authority for one cluster, and certificates that it signs.

`kvstore certs ca` makes ca.pem and ca.key in a directory; `kvstore certs make NAME --role node` adds NAME.pem and
NAME.key. A process needs its own two and ca.pem (`--door-cert`, `--door-key`, `--door-ca`). Keep ca.key from all of
them: who has it can be anybody. Making a name again renews it, and processes take the new files into use by themselves.
"""

import argparse
import secrets
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from kvstore.cli.options import DAYS_MAX, whole
from kvstore.errors import ConfigError
from kvstore.rpc.private_file import write_private

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

ROLES = ("control", "node", "client")
_SKEW = timedelta(minutes=5)
"""How far another host's clock may be behind, and a certificate that was just made is still good there."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    days = whole(1, DAYS_MAX)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--dir", type=Path, default=Path("certs"), metavar="DIR", help="(default: %(default)s)")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    ca = verbs.add_parser("ca", parents=[shared], help="makes the authority; one that is there is left as it is")
    ca.add_argument("--days", type=days, default=3650, metavar="N", help="how long it is good (default: %(default)d)")
    ca.set_defaults(make=_make_ca)
    make = verbs.add_parser("make", parents=[shared], help="makes or renews a certificate")
    make.add_argument("name", metavar="NAME", help="of its files, and in the certificate")
    make.add_argument(
        "--role", action="append", choices=ROLES, required=True, help="what its holder may be; may be given again"
    )
    make.add_argument("--days", type=days, default=90, metavar="N", help="how long it is good (default: %(default)d)")
    make.set_defaults(make=_make_certificate)


def run(args: argparse.Namespace) -> int:
    try:
        import cryptography  # noqa: F401  (an extra: servers and clients do without it)
    except ImportError:
        raise ConfigError("kvstore certs needs the package cryptography: pip install 'kvstore[certs]'") from None
    try:
        args.make(args)
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}") from error
    return 0


def make_ca(folder: Path, days: int = 3650) -> None:
    """Writes ca.pem and ca.key. Raises ConfigError where there is one: all its certificates would be worth nothing."""
    from cryptography import x509

    for path in (folder / "ca.pem", folder / "ca.key"):  # the key may be kept elsewhere
        if path.exists():
            raise ConfigError(f"{path} exists: a new authority would make its certificates worthless")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = _new_key()
    # Of its own: certificates of two authorities are told apart by their issuers' names, where both are believed.
    name = _named(f"kvstore CA {secrets.token_hex(4)}")
    builder = _builder(name, name, key, days)
    certificate = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True).add_extension(
        _usage(signs=True), critical=True
    )
    _write(folder, "ca", certificate, key, key)


def make_certificate(folder: Path, name: str, roles: list[str], days: int = 90) -> None:
    """Writes NAME.pem and NAME.key, signed by the authority of the same directory. Raises ConfigError."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from cryptography.x509.oid import ExtendedKeyUsageOID

    if name == "ca" or not name or Path(name).name != name or len(name) > 64:
        raise ConfigError(f"certs: {name!r} is no name of a certificate")
    try:
        ca = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
        ca_key = load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
    except ValueError as error:
        raise ConfigError(f"{folder}: no authority of `kvstore certs ca`: {error}") from error
    assert isinstance(ca_key, EllipticCurvePrivateKey)
    key = _new_key()
    certificate = (
        _builder(_named(name), ca.subject, key, days)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(f"{role}.kvstore") for role in roles]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage(
                [ExtendedKeyUsageOID.CLIENT_AUTH] + ([ExtendedKeyUsageOID.SERVER_AUTH] if roles != ["client"] else [])
            ),
            critical=False,
        )
    )
    _write(folder, name, certificate, key, ca_key)


def _make_ca(args: argparse.Namespace) -> None:
    make_ca(args.dir, args.days)
    print(f"{args.dir / 'ca.pem'} is for every process, {args.dir / 'ca.key'} for none", file=sys.stderr)


def _make_certificate(args: argparse.Namespace) -> None:
    make_certificate(args.dir, args.name, args.role, args.days)


def _new_key() -> "EllipticCurvePrivateKey":
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _named(name: str) -> "x509.Name":
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(
    subject: "x509.Name", issuer: "x509.Name", key: "EllipticCurvePrivateKey", days: int
) -> "x509.CertificateBuilder":
    from cryptography import x509

    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(*, signs: bool) -> "x509.KeyUsage":
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _write(
    folder: Path,
    name: str,
    certificate: "x509.CertificateBuilder",
    key: "EllipticCurvePrivateKey",
    signer: "EllipticCurvePrivateKey",
) -> None:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_private(folder / f"{name}.key", private, renews=True)
    signed = certificate.sign(signer, hashes.SHA256()).public_bytes(Encoding.PEM)
    write_private(folder / f"{name}.pem", signed, renews=True)

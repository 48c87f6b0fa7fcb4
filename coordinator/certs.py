"""An authority of one's own and the coordinator's certificate, for runs beyond one machine.

`coordinator certs` writes four files into STATE/tls, which only their owner can read: ca.pem goes to the
workers, ca-key.pem stays, server.pem and server-key.pem are the coordinator's. An authority that is there is
used again, so that a new address costs the workers nothing. Time is an argument. Only this module needs
`cryptography`, which is imported when a certificate is made.
"""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from protos.tls import TlsError, read_pem

TLS_DIR = "tls"
CA, CA_KEY, SERVER, SERVER_KEY = "ca.pem", "ca-key.pem", "server.pem", "server-key.pem"
ALWAYS = ("localhost", "127.0.0.1", "::1")
"""Names that every certificate has, so that commands beside the coordinator reach it."""
AUTHORITY_DAYS = 3650
SERVER_DAYS = 365
MAX_DAYS = AUTHORITY_DAYS
MAX_HOSTS = 100
SKEW = timedelta(hours=1)
"""Certificates hold from an hour ago on: clocks differ."""

_HOST = re.compile(r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9-]{1,63})*")


@dataclass(frozen=True, slots=True)
class ServerTls:
    """What the coordinator shows: its certificate (and those between) and its key, as PEM."""

    certificate: bytes
    key: bytes


def make(directory: Path, hosts: Sequence[str], days: int, now: datetime) -> tuple[bool, tuple[str, ...]]:
    """Write the coordinator's certificate for `hosts`, and the authority if there is none.

    Returns (whether the authority is new, what the certificate names). Raises TlsError, OSError.
    """
    if not 1 <= days <= MAX_DAYS:
        raise TlsError(f"--days: found {days}, required 1 to {MAX_DAYS}")
    names = tuple(dict.fromkeys((*(_checked(h) for h in hosts), *ALWAYS)))
    if len(names) > MAX_HOSTS:
        raise TlsError(f"--host: found {len(names)} names, required at most {MAX_HOSTS}")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    present = [(directory / f).exists() for f in (CA, CA_KEY)]
    if any(present) and not all(present):
        found, lacks = (CA, CA_KEY) if present[0] else (CA_KEY, CA)
        raise TlsError(f"{directory}: found {found} without {lacks}; restore it, or remove {found}")
    if not all(present):
        _new_authority(directory, now)
    _new_server(directory, names, days, now)
    return not all(present), names


def _checked(host: str) -> str:
    try:
        return str(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        pass
    if not _HOST.fullmatch(host) or host.replace(".", "").isdecimal():
        raise TlsError(f"--host: found {host[:80]!r}, required a host name or an address, without a port")
    return host.lower()


def _new_authority(directory: Path, now: datetime) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(f"Isthmus authority of {now.date().isoformat()}")
    certificate = (
        _builder(name, name, key.public_key(), AUTHORITY_DAYS, now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, _hash())
    )
    _write(directory / CA_KEY, _key_pem(key))
    _write(directory / CA, _certificate_pem(certificate))


def _new_server(directory: Path, names: Sequence[str], days: int, now: datetime) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        ca = x509.load_pem_x509_certificate(read_pem(directory / CA, "authority", "CERTIFICATE"))
        ca_key: Any = load_pem_private_key(read_pem(directory / CA_KEY, "authority", "PRIVATE KEY"), None)
    except (ValueError, TypeError) as e:
        raise TlsError(
            f"{directory}: found an authority that cannot be read ({e}); remove {CA} and {CA_KEY}"
        ) from None
    if ca.not_valid_after_utc < now + timedelta(days=days):
        raise TlsError(
            f"{directory / CA}: ends on {ca.not_valid_after_utc.date()}, required to outlive {days} days; "
            f"give fewer --days, or remove {CA} and {CA_KEY} and copy the new {CA} to the workers"
        )
    key = ec.generate_private_key(ec.SECP256R1())
    alternatives = x509.SubjectAlternativeName([_general_name(n) for n in names])
    certificate = (
        _builder(_name("Isthmus coordinator"), ca.subject, key.public_key(), days, now)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(alternatives, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, _hash())
    )
    _write(directory / SERVER_KEY, _key_pem(key))
    _write(directory / SERVER, _certificate_pem(certificate))


def _general_name(name: str) -> Any:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _name(text: str) -> Any:
    from cryptography import x509

    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def _builder(subject: Any, issuer: Any, public_key: Any, days: int, now: datetime) -> Any:
    from cryptography import x509

    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(*, signs: bool) -> Any:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=signs, crl_sign=signs, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _hash() -> Any:
    from cryptography.hazmat.primitives import hashes

    return hashes.SHA256()


def _key_pem(key: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def _certificate_pem(certificate: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return bytes(certificate.public_bytes(Encoding.PEM))


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all, and never readable by others, not even while it is written."""
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        out.write(data)
    part.replace(path)


def server_tls(certificate: Path | None, key: Path | None, state_dir: Path) -> ServerTls | None:
    """The files of --tls-cert and --tls-key, or those of the state directory; None: there are none.

    Raises TlsError: one without the other, a key that others can read, or that is another certificate's.
    """
    if (certificate is None) != (key is None):
        found, lacks = ("--tls-cert", "--tls-key") if key is None else ("--tls-key", "--tls-cert")
        raise TlsError(f"found {found} without {lacks}, required both or neither")
    certificate, key = tls_files(certificate, key, state_dir)
    if certificate.parent == state_dir / TLS_DIR and not certificate.exists() and not key.exists():
        return None
    pem, key_pem = read_pem(certificate, "--tls-cert", "CERTIFICATE"), read_pem(key, "--tls-key", "KEY")
    if key.stat().st_mode & 0o007:
        raise TlsError(f"--tls-key {key}: found that everybody can read it; chmod 600 it")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=_no_password)
    except (ssl.SSLError, ValueError) as e:
        raise TlsError(
            f"--tls-cert {certificate}, --tls-key {key}: found {e}; required a certificate and its own key, "
            "without a password"
        ) from None
    return ServerTls(pem, key_pem)


def tls_files(certificate: Path | None, key: Path | None, state_dir: Path) -> tuple[Path, Path]:
    """The files that were given, else where `make` puts its own."""
    if certificate is None or key is None:
        return state_dir / TLS_DIR / SERVER, state_dir / TLS_DIR / SERVER_KEY
    return certificate, key


def _no_password() -> str:
    raise ValueError("a key behind a password")


__all__ = ["ServerTls", "TlsError", "make", "server_tls"]

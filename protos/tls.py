"""How a client reaches the coordinator: in the clear, or over TLS; and why that did not work.

Shared by `worker` and `coordinator`, which may not import each other. Knows channels and certificates;
refuses to know what is called on them. `explain` is asked only after a call has failed, because gRPC
says of every failed handshake that the address is unavailable.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from protos.version import MAX_MESSAGE_BYTES

MAX_PEM_BYTES = 1 << 20
EXPLAIN_TIMEOUT_S = 5.0

CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
)
"""A channel that notices a silent coordinator and takes no message beyond the cap."""


class TlsError(ValueError):
    """A certificate or key that cannot be used: says what was found, what is required and what to do."""


@dataclass(frozen=True, slots=True)
class Authority:
    """The certificates that a coordinator's certificate must be signed by, as PEM."""

    pem: bytes
    path: str = ""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address at `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def read_authority(path: Path) -> Authority:
    """The file of --ca. Raises TlsError."""
    pem = read_pem(path, "--ca", "CERTIFICATE")
    try:
        ssl.create_default_context(cadata=pem.decode("ascii"))
    except (ssl.SSLError, ValueError) as e:
        raise TlsError(f"--ca {path}: found {e}, required certificates as PEM") from None
    return Authority(pem, str(path))


def read_pem(path: Path, option: str, what: str) -> bytes:
    """The bytes of a PEM file that holds a `what`. Raises TlsError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PEM_BYTES + 1)
    except OSError as e:
        raise TlsError(
            f"{option} {path}: found {e.strerror or e}, required a PEM file; `coordinator certs` makes them"
        ) from None
    if len(data) > MAX_PEM_BYTES or b"-----BEGIN" not in data or what.encode() not in data:
        raise TlsError(
            f"{option} {path}: found {len(data)} bytes without a {what} in them, required PEM of at most "
            f"{MAX_PEM_BYTES} bytes"
        )
    return data


def channel(address: str, authority: Authority | None) -> Any:
    """A blocking channel to `address`; `authority` None: in the clear."""
    if authority is None:
        return grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
    return grpc.secure_channel(address, _credentials(authority), options=CHANNEL_OPTIONS)


def aio_channel(address: str, authority: Authority | None) -> Any:
    """The same for asyncio."""
    if authority is None:
        return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
    return grpc.aio.secure_channel(address, _credentials(authority), options=CHANNEL_OPTIONS)


def _credentials(authority: Authority) -> Any:
    return grpc.ssl_channel_credentials(root_certificates=authority.pem)


def explain(address: str, authority: Authority | None, timeout_s: float = EXPLAIN_TIMEOUT_S) -> str:
    """Why a coordinator that listens at `address` does not answer; '' when it is not for want of TLS.

    Opens one connection and blocks for `timeout_s` at most.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if authority is not None:
        context = ssl.create_default_context(cadata=authority.pem.decode("ascii"))
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((host, int(port)), timeout_s) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            pass
    except ssl.SSLCertVerificationError as e:
        assert authority is not None
        return (
            f"{address} shows a certificate that does not fit ({e.verify_message}); required: one for "
            f"{host!r}, signed by {authority.path or 'the given authority'}. Copy the coordinator's "
            f"ca.pem again, or have a certificate made with `coordinator certs --host {host}`"
        )
    except ssl.SSLError:
        if authority is None:
            return ""
        return (
            f"{address} does not speak TLS, and {authority.path or 'an authority'} was given for it (by "
            "--ca, or found in the state directory); start the coordinator with a certificate "
            "(`coordinator certs`), or do without"
        )
    except (OSError, ValueError):
        return ""
    if authority is None:
        return f"{address} speaks TLS; pass --ca FILE with the ca.pem that `coordinator certs` made"
    return ""

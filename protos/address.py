"""HOST:PORT as people write it, in options and in messages. Opens nothing."""

from __future__ import annotations


class AddressError(ValueError):
    """Text that is no HOST:PORT: names the option, what was found and what is required."""


def split_host_port(text: str, what: str = "address") -> tuple[str, int]:
    """("host", port) of "host:port"; "[v6]:port" keeps its brackets. `what`: whose it is, for the error.
    Raises AddressError."""
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise AddressError(f"{what}: found {text!r}, required HOST:PORT with a port of 0 .. 65535")
    return host, int(port)

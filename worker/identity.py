"""Who a worker is, for as long as its state directory lasts: a CURVE key pair and a count of its starts.

The secret key encrypts the worker's data connections and proves to the coordinator that it is the one who
came before. A directory belongs to one process at a time, which holds a lock on it. Knows no network.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import zmq

from worker.addresses import CurveKeys

KEY, STARTS, LOCK = "curve.key", "starts", "lock"
MAX_SLOTS = 1024
KEY_BYTES = 40


class IdentityError(Exception):
    """The directory holds no identity that can be used: says what was found and what to do."""


class IdentityTaken(IdentityError):
    """Another process has the identity."""


@dataclass(slots=True)
class Identity:
    """An identity that this process holds until `close`."""

    directory: Path
    keys: CurveKeys
    starts: int
    """How often a worker was started with it, this one included."""
    lock: IO[str]
    incarnation: str
    """New each time it is opened: the count, and chance, should the directory ever be copied."""

    def proof(self, token: str) -> bytes:
        """What only the holder of the secret key can make, for this token alone."""
        return hmac.digest(self.keys.secret, b"isthmus join " + token.encode(), hashlib.sha256)

    def close(self) -> None:
        self.lock.close()


def open_identity(directory: Path) -> Identity:
    """The identity of `directory`, made on first use. Raises IdentityError, IdentityTaken."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (directory / LOCK).open("a+")
    except OSError as e:
        raise IdentityError(
            f"--identity {directory}: found that it cannot be written ({e.strerror}); give another"
        ) from e
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        lock.close()
        raise IdentityTaken(
            f"--identity {directory}: found another worker using it; give each its own, or stop the other"
        ) from e
    try:
        keys, starts = _keys(directory / KEY), _count(directory / STARTS)
        return Identity(directory, keys, starts, lock, f"{starts}-{secrets.token_hex(8)}")
    except OSError as e:
        lock.close()
        raise IdentityError(f"--identity {directory}: found {e}, required a folder to write to") from e
    except BaseException:
        lock.close()
        raise


def first_free(parent: Path) -> Identity:
    """The first identity of `parent` that no process has: workers of one machine get one each."""
    for slot in range(1, MAX_SLOTS + 1):
        try:
            return open_identity(parent / str(slot))
        except IdentityTaken:
            continue
    raise IdentityError(f"{parent}: found {MAX_SLOTS} workers at work; give another --identity")


def _keys(path: Path) -> CurveKeys:
    if not path.exists():
        _write(path, CurveKeys.new().secret)
    if path.stat().st_mode & 0o077:
        raise IdentityError(
            f"{path}: found that others can read it; chmod 600 it, or remove it for a new one"
        )
    secret = path.read_bytes()[: KEY_BYTES + 1].strip()
    try:
        return CurveKeys(zmq.curve_public(secret), secret)
    except (ValueError, zmq.ZMQError):
        raise IdentityError(f"{path}: found no CURVE key in it; remove it for a new identity") from None


def _count(path: Path) -> int:
    try:
        before = int(path.read_text()[:20])
    except (OSError, ValueError):
        before = 0
    _write(path, str(before + 1).encode())
    return before + 1


def _write(path: Path, data: bytes) -> None:
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        out.write(data)
    part.replace(path)

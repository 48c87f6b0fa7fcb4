"""A coordinator that stands by: it waits until nobody drives the run any more, and then drives it.

Looks at the store and nowhere else: what cannot write there cannot commit a step either. Time and waiting are
arguments.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from scheduler.lease import RENEWALS, Lease

from .store import Store

Found = Literal["free", "over"]


def holder_name() -> str:
    """Of this process, as other coordinators are told of it."""
    return f"{socket.gethostname()}:{os.getpid()}-{secrets.token_hex(2)}"


def verdict(code: int | None, lease: Lease | None, now_s: float) -> Found | None:
    """Whether the run is to be taken over, or over; None: go on waiting."""
    if code is not None:
        return "over"
    return "free" if lease is not None and now_s >= lease.until_s else None


def wait_until_free(
    state_dir: Path,
    lease_s: float,
    say: Callable[[dict[str, Any]], None],
    now: Callable[[], float],
    sleep: Callable[[float], None],
) -> Found:
    """Wait for the lease to run out, or for the run to end. Raises StoreError."""
    told = ""
    with Store(state_dir) as store:
        while True:
            run, lease = store.run(), store.held_by()
            found = verdict(run["code"] if run else None, lease, now())
            if found is not None:
                return found
            by = lease.holder if lease else ""
            if by != told or not told:
                told = by or "nobody yet"
                say({"event": "standby", "reason": f"{told} drives the run"})
            sleep(lease_s / RENEWALS)

"""Who may read the dashboard: pure, from a request's headers to a reason for refusal.

On loopback nobody else can ask, but a page of another site open in the same browser could: so the Host
must be ours and the request must not come from another site. Beyond loopback a token is asked for.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping

COOKIE = "isthmus-dashboard"


def local_names(bind: str) -> frozenset[str]:
    """The names that a dashboard on loopback is reached by."""
    return frozenset({bind.rpartition(":")[0].strip("[]").lower(), "localhost", "127.0.0.1", "::1"})


def refusal(
    headers: Mapping[str, str], hosts: frozenset[str], token: str, given: str
) -> tuple[int, str] | None:
    """(status, reason) if the request is refused. `hosts`: names we are reached by (none: any); `token`
    '': none is needed; `given`: the token of the request's query, cookie or Authorization header."""
    host = headers.get("host", "").rpartition(":")[0] or headers.get("host", "")
    if hosts and host.strip("[]").lower() not in hosts:
        return 421, f"found the host {host[:80]!r}, required one that this dashboard is served at"
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return 403, "found a request from another site, required one of this page"
    origin = headers.get("origin", "")
    if origin and origin.partition("://")[2] != headers.get("host", ""):
        return 403, "found a request from another site, required one of this page"
    if token and not hmac.compare_digest(given.encode(), token.encode()):
        return 401, "found no token or a wrong one; open the address that `coordinator start` printed"
    return None

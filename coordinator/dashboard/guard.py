"""Who may read the dashboard: from a request's headers to a reason for refusal.

On loopback nobody else can ask, but a page of another site open in the same browser could: so the Host
must be ours and the request must not come from another site. Beyond loopback a token is asked for, one that
reads the page and has not ended: the run's own and those that workers join with are none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..tokens import Tokens

COOKIE = "isthmus-dashboard"


def local_names(bind: str) -> frozenset[str]:
    """The names that a dashboard on loopback is reached by."""
    return frozenset({bind.rpartition(":")[0].strip("[]").lower(), "localhost", "127.0.0.1", "::1"})


class Readers:
    """Those who show a token for the page. `now_s`: seconds since 1970."""

    def __init__(self, tokens: Tokens, now_s: Callable[[], float]) -> None:
        self._tokens = tokens
        self._now_s = now_s

    def refusal(self, given: str) -> str:
        """'' if the token lets its holder read at this moment, else why not."""
        return self._tokens.refusal(given, self._now_s(), purpose="dashboard")

    def left_s(self, given: str) -> float:
        """How long the token will go on to hold."""
        found = self._tokens.of(given, "dashboard")
        return max(0.0, found.expires_s - self._now_s()) if found is not None else 0.0


def refusal(
    headers: Mapping[str, str], hosts: frozenset[str], readers: Readers | None, given: str
) -> tuple[int, str] | None:
    """(status, reason) if the request is refused. `hosts`: names we are reached by (none: any); `readers`
    None: anybody reads; `given`: the token of the request's query, cookie or Authorization header."""
    host = headers.get("host", "").rpartition(":")[0] or headers.get("host", "")
    if hosts and host.strip("[]").lower() not in hosts:
        return 421, f"found the host {host[:80]!r}, required one that this dashboard is served at"
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return 403, "found a request from another site, required one of this page"
    origin = headers.get("origin", "")
    if origin and origin.partition("://")[2] != headers.get("host", ""):
        return 403, "found a request from another site, required one of this page"
    if readers is not None and (reason := readers.refusal(given)):
        return 401, reason
    return None

"""The door of the dashboard's web side: asks `guard` of every request, and says on every answer what a
browser may do with it. Lets nothing in that would change something.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from .guard import COOKIE, Readers, refusal

SAFE = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


def given(request: Request) -> str:
    """The token that a request shows; '' for none."""
    bearer = request.headers.get("authorization", "")
    return (
        request.query_params.get("token")
        or request.cookies.get(COOKIE, "")
        or (bearer[7:] if bearer.lower().startswith("bearer ") else "")
    )


class Guard:
    """Refuses what `guard.refusal` refuses, and says on every answer what a browser may do with it."""

    def __init__(self, app: ASGIApp, readers: Readers | None, hosts: frozenset[str]) -> None:
        self._app, self._readers, self._hosts = app, readers, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        refused = refusal(request.headers, self._hosts, self._readers, given(request))

        async def safely(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += [(k.encode(), v.encode()) for k, v in SAFE.items()]
            await send(message)

        if refused is not None:
            await JSONResponse({"error": refused[1]}, refused[0])(scope, receive, safely)
        elif scope["method"] not in ("GET", "HEAD"):
            await JSONResponse({"error": "the dashboard only reads"}, 405)(scope, receive, safely)
        else:
            await self._app(scope, receive, safely)

"""Serves the dashboard: the page, its data as JSON and server-sent events, and metrics. Changes nothing.

/              the page           /api/run        the snapshot        /api/steps     the series
/static/NAME   its parts          /api/events     snapshots, live     /api/timeline  predicted beside measured
/metrics       OpenMetrics        /api/openapi    what these answer   /api/links     measured links by region
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ..timelines import TIMELINE_FILE
from .board import Board
from .guard import COOKIE, Readers, refusal
from .links import LinksByRegion
from .metrics import exposition
from .openapi import DOCUMENT

STATIC = Path(__file__).parent / "static"
TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}
PUSH_EVERY_S = 0.5
KEEP_ALIVE_S = 15.0
ASK_AGAIN_S = 5.0
"""How often a page that follows the run is asked whether its token still holds."""
MAX_STREAMS = 64
MAX_POINTS = 2000
SAFE = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


class Dashboard:
    """One board, served. `told` is called after every event, on the loop's thread."""

    def __init__(
        self,
        board: Board,
        state_dir: Path,
        readers: Readers | None = None,
        hosts: frozenset[str] = frozenset(),
    ) -> None:
        self.board = board
        self._readers = readers
        self._state_dir = state_dir
        self._measured = LinksByRegion(state_dir)
        self._streams = 0
        self._closing = asyncio.Event()
        self._cache: tuple[int, bytes] = (-1, b"")
        self.app = Starlette(
            routes=[
                Route("/", self._page),
                Route("/static/{name}", self._static),
                Route("/api/run", self._run),
                Route("/api/steps", self._steps),
                Route("/api/timeline", self._timeline),
                Route("/api/links", self._links),
                Route("/api/events", self._events),
                Route("/api/openapi", self._openapi),
                Route("/metrics", self._metrics),
            ],
            middleware=[Middleware(_Guard, readers=readers, hosts=hosts)],
        )

    def close(self) -> None:
        """Let those who follow the run see its end, and go."""
        self._closing.set()

    # ---- pages

    async def _page(self, request: Request) -> Response:
        token = request.query_params.get("token")
        if token is None:
            return _file("index.html")
        # The cookie carries it from now on, and it leaves the address bar.
        rest = urlencode([(k, v) for k, v in request.query_params.multi_items() if k != "token"])
        response = RedirectResponse(f".?{rest}" if rest else ".", 303)
        if self._readers is not None:
            response.set_cookie(
                COOKIE, token, max_age=int(self._readers.left_s(token)), httponly=True, samesite="strict",
                secure=request.url.scheme == "https",
            )  # fmt: skip
        return response

    async def _static(self, request: Request) -> Response:
        return _file(request.path_params["name"])

    # ---- data

    async def _run(self, _: Request) -> Response:
        return Response(self._snapshot(), media_type="application/json")

    def _snapshot(self) -> bytes:
        """The snapshot's bytes, made once a change however many look on."""
        if self._cache[0] != self.board.seq:
            self._cache = self.board.seq, json.dumps(self.board.snapshot()).encode()
        return self._cache[1]

    async def _steps(self, request: Request) -> Response:
        try:
            after = int(request.query_params.get("after", "-1"))
        except ValueError:
            found = request.query_params.get("after", "")[:40]
            return JSONResponse({"error": f"after: found {found!r}, required a whole number"}, 400)
        return JSONResponse(self.board.points(after, MAX_POINTS))

    async def _timeline(self, _: Request) -> Response:
        path = self._state_dir / TIMELINE_FILE
        try:
            text = await asyncio.to_thread(path.read_bytes)
        except FileNotFoundError:
            return JSONResponse({"devices": [], "predicted": None, "measured": []})
        return Response(text, media_type="application/json")

    async def _links(self, _: Request) -> Response:
        regions = {w.name: w.region or w.name for w in self.board.workers.values()}
        return JSONResponse(await asyncio.to_thread(self._measured.read, regions))

    async def _events(self, request: Request) -> Response:
        if self._streams >= MAX_STREAMS:
            return JSONResponse({"error": f"{MAX_STREAMS} pages are looking on already; close one"}, 503)
        return StreamingResponse(self._stream(_given(request)), media_type="text/event-stream")

    async def _stream(self, given: str) -> AsyncIterator[bytes]:
        self._streams += 1
        try:
            sent, quiet_s, asked_s = -1, 0.0, 0.0
            while True:
                if self._readers is not None and asked_s >= ASK_AGAIN_S:
                    asked_s = 0.0
                    if self._readers.refusal(given):
                        return
                if sent != self.board.seq:
                    sent, quiet_s = self.board.seq, 0.0
                    yield b"data: " + self._snapshot() + b"\n\n"
                elif quiet_s >= KEEP_ALIVE_S:
                    quiet_s = 0.0
                    yield b": still here\n\n"
                if self._closing.is_set():
                    return
                with suppress(TimeoutError):  # at the end of the run the last snapshot goes out, and no wait
                    await asyncio.wait_for(self._closing.wait(), PUSH_EVERY_S)
                quiet_s += PUSH_EVERY_S
                asked_s += PUSH_EVERY_S
        finally:
            self._streams -= 1

    async def _openapi(self, _: Request) -> Response:
        return JSONResponse(DOCUMENT)

    async def _metrics(self, _: Request) -> Response:
        text, kind = exposition(self.board)
        return Response(text, headers={"content-type": kind})


def _file(name: str) -> Response:
    """One of the shipped files, by its plain name; nothing else can be asked for."""
    known = {path.name: path for path in STATIC.iterdir()}
    if name not in known:
        return JSONResponse({"error": "no such file"}, 404)
    path = known[name]
    return Response(path.read_bytes(), media_type=TYPES.get(path.suffix, "text/plain"))


def _given(request: Request) -> str:
    """The token that a request shows; '' for none."""
    bearer = request.headers.get("authorization", "")
    return (
        request.query_params.get("token")
        or request.cookies.get(COOKIE, "")
        or (bearer[7:] if bearer.lower().startswith("bearer ") else "")
    )


class _Guard:
    """Refuses what `guard.refusal` refuses, and says on every answer what a browser may do with it."""

    def __init__(self, app: ASGIApp, readers: Readers | None, hosts: frozenset[str]) -> None:
        self._app, self._readers, self._hosts = app, readers, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        refused = refusal(request.headers, self._hosts, self._readers, _given(request))

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


class _Server(uvicorn.Server):
    """uvicorn on a loop and with signals that are ours."""

    def install_signal_handlers(self) -> None:
        return


async def serve(
    dashboard: Dashboard, listening: socket.socket, tls: tuple[Path, Path] | None = None
) -> tuple[uvicorn.Server, asyncio.Task[None]]:
    """Serve on a socket that listens already, until the server is told `should_exit`."""
    certificate, key = tls or (None, None)
    config = uvicorn.Config(
        dashboard.app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=1,
        ssl_certfile=certificate, ssl_keyfile=key, ws="none", server_header=False,
    )  # fmt: skip
    server = _Server(config)
    server.config.load()
    task = asyncio.get_running_loop().create_task(_quiet(server.serve, listening))
    return server, task


async def _quiet(run: Callable[..., Awaitable[None]], listening: socket.socket) -> None:
    try:
        await run(sockets=[listening])
    except asyncio.CancelledError:
        return

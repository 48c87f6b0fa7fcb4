"""Serves the dashboard: the page, its data as JSON and server-sent events, and metrics. Changes nothing.

/              the page           /api/run        the snapshot        /api/steps     the series
/static/NAME   its parts          /api/events     snapshots, live     /api/timeline  predicted beside measured
/metrics       OpenMetrics        /api/openapi    what these answer   /api/links     measured links by region
/runs          runs, compared     /api/runs       each in numbers     /api/compare   where their jobs differ

With `?run=ID` the page and its data are of another run, one of /api/runs, as it is in its state directory.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlencode

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from ..state_dir import StoreError
from ..timelines import TIMELINE_FILE
from .board import Board
from .door import Guard, given
from .guard import COOKIE, Readers
from .links import LinksByRegion
from .metrics import exposition
from .openapi import DOCUMENT
from .runs import MAX_COMPARED, Below, Runs, Shown

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


class _NoRun(Exception):
    """There is no such run, or it cannot be read: why."""


async def _no_run(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 404)


class Dashboard:
    """One board, served. `told` is called after every event, on the loop's thread."""

    def __init__(
        self,
        board: Board,
        state_dir: Path,
        readers: Readers | None = None,
        hosts: frozenset[str] = frozenset(),
        below: Below | None = None,
    ) -> None:
        self.board = board
        self._readers = readers
        self._own = Shown(board, state_dir, LinksByRegion(state_dir))
        self._runs = Runs(state_dir, below)
        self._streams = 0
        self._closing = asyncio.Event()
        self._cache: tuple[int, bytes] = (-1, b"")
        self.app = Starlette(
            routes=[
                Route("/", self._page),
                Route("/runs", self._page),
                Route("/static/{name}", self._static),
                Route("/api/run", self._run),
                Route("/api/steps", self._steps),
                Route("/api/timeline", self._timeline),
                Route("/api/links", self._links),
                Route("/api/runs", self._list),
                Route("/api/compare", self._compare),
                Route("/api/events", self._events),
                Route("/api/openapi", self._openapi),
                Route("/metrics", self._metrics),
            ],
            middleware=[Middleware(Guard, readers=readers, hosts=hosts)],
            exception_handlers={_NoRun: _no_run},
        )

    def close(self) -> None:
        """Let those who follow the run see its end, and go."""
        self._closing.set()

    # ---- pages

    async def _page(self, request: Request) -> Response:
        name = request.url.path.rpartition("/")[2]
        if not name and "run" not in request.query_params and not self.board.run and not self._runs.has_own():
            return RedirectResponse(request.url.replace(path=f"{request.url.path}runs"), 303)
        token = request.query_params.get("token")
        if token is None:
            return _file(f"{name or 'index'}.html")
        # The cookie carries it from now on, and it leaves the address bar.
        rest = urlencode([(k, v) for k, v in request.query_params.multi_items() if k != "token"])
        response = RedirectResponse(f"{name or '.'}?{rest}" if rest else name or ".", 303)
        if self._readers is not None:
            response.set_cookie(
                COOKIE, token, max_age=int(self._readers.left_s(token)), httponly=True, samesite="strict",
                secure=request.url.scheme == "https",
            )  # fmt: skip
        return response

    async def _static(self, request: Request) -> Response:
        return _file(request.path_params["name"])

    # ---- data

    async def _asked(self, request: Request) -> Shown:
        """The run that a request is about. Raises _NoRun."""
        name = request.query_params.get("run")
        if name is None:
            return self._own
        try:
            found = await asyncio.to_thread(self._runs.shown, name)
        except StoreError as error:
            raise _NoRun(str(error)) from error
        if found is None:
            raise _NoRun(f"run: found {name[:80]!r}, required one that /api/runs lists")
        return found

    async def _run(self, request: Request) -> Response:
        asked = await self._asked(request)
        if asked is not self._own:
            return JSONResponse(asked.board.snapshot())
        return Response(self._snapshot(), media_type="application/json")

    async def _list(self, _: Request) -> Response:
        return JSONResponse(await asyncio.to_thread(self._runs.rows))

    async def _compare(self, request: Request) -> Response:
        names = request.query_params.getlist("run")
        if not 2 <= len(names) <= MAX_COMPARED or len(set(names)) < len(names):
            reason = f"run: found {len(names)}, required 2 to {MAX_COMPARED} different ones"
            return JSONResponse({"error": reason}, 400)
        try:
            found = await asyncio.to_thread(self._runs.settings, names)
        except StoreError as error:
            raise _NoRun(str(error)) from error
        if found is None:
            raise _NoRun("run: found one that is not there, required such as /api/runs lists")
        return JSONResponse({"runs": names, "settings": found})

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
        return JSONResponse((await self._asked(request)).board.points(after, MAX_POINTS))

    async def _timeline(self, request: Request) -> Response:
        path = (await self._asked(request)).state_dir / TIMELINE_FILE
        try:
            text = await asyncio.to_thread(path.read_bytes)
        except FileNotFoundError:
            return JSONResponse({"devices": [], "predicted": None, "measured": []})
        return Response(text, media_type="application/json")

    async def _links(self, request: Request) -> Response:
        asked = await self._asked(request)
        regions = {w.name: w.region or w.name for w in asked.board.workers.values()}
        return JSONResponse(await asyncio.to_thread(asked.measured.read, regions))

    async def _events(self, request: Request) -> Response:
        if self._streams >= MAX_STREAMS:
            return JSONResponse({"error": f"{MAX_STREAMS} pages are looking on already; close one"}, 503)
        return StreamingResponse(self._stream(given(request)), media_type="text/event-stream")

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

"""The dashboard beside a run, or of a run that has ended: where it listens, and what it is told."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from protos.address import split_host_port
from protos.tls import is_loopback
from scheduler.reasons import reason_of

from ..progress import Show
from ..tokens import Tokens
from .board import Board
from .guard import Readers, local_names
from .runs import Below
from .server import Dashboard, serve

Say = Callable[[dict[str, Any]], None]


class DashboardError(Exception):
    """The dashboard cannot be served: says why and what to do."""


@dataclass(frozen=True, slots=True)
class Where:
    """HOST:PORT to serve at. Beyond this machine a token is asked for, over TLS where `tls` names its
    certificate's and key's files. `below`: where other runs are that the page may open."""

    bind: str
    tls: tuple[Path, Path] | None = None
    below: Below | None = None

    @property
    def on_loopback(self) -> bool:
        return is_loopback(self.bind.rpartition(":")[0])


def listen(where: Where) -> socket.socket:
    """The listening socket. Raises DashboardError."""
    host, port = split_host_port(where.bind)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host.strip("[]"), port), family=family)
    except OSError as error:
        why = f"the address cannot be listened on ({reason_of(error)}); give another port"
        raise DashboardError(f"--dashboard {where.bind}: {why}") from error


def opened_at(
    where: Where, listening: socket.socket, state_dir: Path, valid_s: float, now_s: float
) -> dict[str, Any]:
    """The event that says what to open in a browser; where a token is asked for, with a new one that reads
    the page for `valid_s`. Raises TokenError."""
    host, port = where.bind.rpartition(":")[0], listening.getsockname()[1]
    if where.on_loopback:
        return {"event": "dashboard", "address": f"http://{host}:{port}/"}
    tokens = Tokens(state_dir)
    try:
        token = tokens.create(now_s, valid_s=valid_s, label="as the coordinator began", purpose="dashboard")
        made = tokens.of(token, "dashboard")
    finally:
        tokens.close()
    assert made is not None
    address = f"{'https' if where.tls else 'http'}://{host}:{port}/?token={token}"
    return {"event": "dashboard", "address": address, "token_id": made.id, "until_s": made.expires_s}


def told(board: Board, show: Show, now_s: Callable[[], float]) -> Say:
    """A `say` that shows an event and tells the board."""

    def say(event: dict[str, Any]) -> None:
        show(event)
        board.take(event, now_s())

    return say


T = TypeVar("T")


async def watched(
    work: Coroutine[Any, Any, T], board: Board, state_dir: Path, where: Where, listening: socket.socket
) -> T:
    """What `work` gives, with the dashboard served as long as it runs."""
    async with served(board, state_dir, where, listening):
        return await work


@asynccontextmanager
async def served(
    board: Board, state_dir: Path, where: Where, listening: socket.socket
) -> AsyncIterator[None]:
    """Serve the board while the body runs."""
    hosts = local_names(where.bind) if where.on_loopback else frozenset[str]()
    tokens = None if where.on_loopback else Tokens(state_dir)
    readers = Readers(tokens, time.time) if tokens else None
    dashboard = Dashboard(board, state_dir, readers, hosts, where.below)
    server, task = await serve(dashboard, listening, None if where.on_loopback else where.tls)
    try:
        yield
    finally:
        dashboard.close()  # pages that follow the run would hold it open
        server.should_exit = True
        await asyncio.wait({task}, timeout=5.0)
        listening.close()
        if tokens is not None:
            tokens.close()

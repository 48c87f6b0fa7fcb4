"""A real browser for tests of the page, the system's Chromium by Playwright; and a served board."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn

from coordinator.dashboard.board import Board
from coordinator.dashboard.guard import Readers, local_names
from coordinator.dashboard.runs import Below
from coordinator.dashboard.server import Dashboard

if TYPE_CHECKING:
    from playwright.sync_api import Browser

HOST = "127.0.0.1"
WAIT_MS = 120_000.0
"""Against a page that hangs; what is expected is waited for, on a slow machine longer."""


def chromium() -> str | None:
    """The program; None where there is none."""
    return next((x for x in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if x), None)


def why_no_browser() -> str | None:
    """What is missing for `browser`, or None."""
    if chromium() is None:
        return "found no Chromium on this machine (Debian: apt-get install chromium)"
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "found no playwright; pip install 'isthmus[dev]'"
    return None


@contextmanager
def browser() -> Iterator[Browser]:
    """Chromium without a window, as it is installed: nothing is downloaded."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=WAIT_MS)
    # Its sandbox wants a user that is not root.
    arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium(), args=arguments)
        try:
            yield opened
        finally:
            opened.close()


@contextmanager
def served(
    board: Board, state_dir: Path, readers: Readers | None = None, below: Below | None = None
) -> Iterator[str]:
    """The page of a board, served on a thread of its own: its address."""
    dashboard = Dashboard(board, state_dir, readers, local_names(f"{HOST}:0"), below)
    listening = socket.create_server((HOST, 0))
    config = uvicorn.Config(dashboard.app, log_level="warning", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://{HOST}:{listening.getsockname()[1]}/"
    finally:
        server.should_exit = server.force_exit = True
        thread.join()
        listening.close()


def requests_of(page: Any) -> list[str]:
    """A list that every address the page asks for is added to, from now on."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    return asked

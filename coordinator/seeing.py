"""`coordinator start --dashboard`, `coordinator dashboard`, `coordinator runs`: runs live or ended.

The web packages are an extra and imported here only when a page is asked for.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from protos.address import AddressError, split_host_port
from protos.ending import end
from scheduler.exit_codes import ExitCode

from .access import seconds
from .options import DEFAULT_STATE_DIR, AsJson, StateDir
from .progress import Show
from .run_list import RunSummary, state_dirs, summary_of
from .state_dir import StoreError
from .tokens import TokenError, until

if TYPE_CHECKING:
    from .dashboard.attach import Where
    from .dashboard.board import Board

DEFAULT_BIND = "127.0.0.1:8265"
NO_RUN = "{}: found no run in it or below, required one or more"
TlsFiles = tuple[Path, Path] | None
Runs = Annotated[
    Path,
    typer.Argument(
        help="A directory with state directories in it; `runs` if none is named.", file_okay=False
    ),
]


class DashboardPortInUse(Exception):
    """The dashboard's address cannot be listened on: names it."""


class DashboardRefused(Exception):
    """The dashboard is not served; `code` is the exit code."""

    def __init__(self, code: ExitCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code


@dataclass(frozen=True, slots=True)
class Page:
    """What was asked for: `bind` as HOST:PORT, how long its address's token is `valid`, with whose
    certificate, whether without one, and the directory of other runs."""

    bind: str
    valid: str = ""
    tls: TlsFiles = None
    insecure: bool = False
    runs_dir: Path | None = None


def _where(page: Page, state_dir: Path) -> Where:
    try:
        from .dashboard.attach import Where
        from .dashboard.runs import Below
    except ImportError as error:
        reason = f"--dashboard: found no package for it ({error}); pip install 'isthmus[dashboard]'"
        raise DashboardRefused(ExitCode.USAGE, reason) from error
    try:
        split_host_port(page.bind, "--dashboard")
    except AddressError as error:
        raise DashboardRefused(ExitCode.USAGE, str(error)) from error
    where = Where(page.bind, page.tls)
    if page.runs_dir is not None:
        where = replace(where, below=Below(page.runs_dir))
    elif where.on_loopback:  # who reads the page reads the files, too
        where = replace(where, below=Below(state_dir.parent, levels=1))
    if not (where.on_loopback or page.tls or page.insecure):
        raise DashboardRefused(
            ExitCode.INSECURE_BIND,
            f"--dashboard: found {page.bind}, which other machines can reach, and no certificate; make one "
            "with `coordinator certs`, serve it at 127.0.0.1 and tunnel, or pass --insecure",
        )
    return where


def run_with_dashboard(
    page: Page,
    state_dir: Path,
    job: str,
    resumed: bool,
    show: Show,
    work: Callable[[Callable[[dict[str, Any]], None]], Coroutine[Any, Any, ExitCode]],
) -> ExitCode:
    """Run `work(say)` with a page that shows what it says. Raises DashboardRefused, DashboardPortInUse."""
    where = _where(page, state_dir)
    from .dashboard.attach import DashboardError, listen, opened_at, told, watched
    from .dashboard.board import Board
    from .dashboard.replay import board_of

    try:
        valid_s = seconds(page.valid, "--dashboard-valid")
        listening = listen(where)
        opened = opened_at(where, listening, state_dir, valid_s, time.time())
    except TokenError as error:
        raise DashboardRefused(ExitCode.USAGE, str(error)) from error
    except DashboardError as error:
        raise DashboardPortInUse(str(error)) from error
    board = board_of(state_dir) if resumed else Board(job=job)
    show(opened)
    return asyncio.run(watched(work(told(board, show, time.time)), board, state_dir, where, listening))


def dashboard(
    state_dir: StateDir = DEFAULT_STATE_DIR,
    at: Annotated[str, typer.Option(help="HOST:PORT on this machine to serve it at.")] = DEFAULT_BIND,
    runs_dir: Annotated[
        Path | None,
        typer.Option(
            "--runs",
            help="Open the runs below this directory, to look at and to compare. Default: those beside "
            "--state-dir.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Open the page of runs that have ended (or go on without one), until Ctrl-C."""
    try:
        where = _where(Page(at, runs_dir=runs_dir), state_dir)
        from .dashboard.attach import DashboardError, listen, opened_at, watched
        from .dashboard.board import Board
        from .dashboard.replay import board_of

        own = bool(state_dirs(state_dir, 0)) or runs_dir is None
        if runs_dir is not None and not own and not state_dirs(runs_dir):
            raise StoreError(NO_RUN.format(runs_dir))
        board = board_of(state_dir) if own else Board()
        listening = listen(where)
    except DashboardRefused as error:
        end(error.code, str(error), as_json)
    except StoreError as error:
        end(ExitCode.STATE_DIR, str(error), as_json)
    except DashboardError as error:
        end(ExitCode.PORT_IN_USE, str(error), as_json)
    event = opened_at(where, listening, state_dir, 0.0, time.time())  # on this machine: without a token
    shown = board.run if own else f"the runs below {runs_dir}"
    typer.echo(json.dumps(event) if as_json else f"{event['address']} shows {shown} until Ctrl-C")
    try:
        asyncio.run(watched(_until_interrupted(board, state_dir), board, state_dir, where, listening))
    except KeyboardInterrupt:
        raise typer.Exit(int(ExitCode.OK)) from None


async def _until_interrupted(board: Board, state_dir: Path) -> None:
    """Keep up with a run that another process goes on with."""
    from .dashboard.replay import board_of
    from .dashboard.runs import stamp_of

    seen = None
    while True:
        await asyncio.sleep(2.0)
        stamp = stamp_of(state_dir)
        if not state_dirs(state_dir, 0) or (stamp is not None and stamp == seen):
            continue
        seen = stamp
        now = await asyncio.to_thread(board_of, state_dir)
        if now.seq != board.seq:
            board.become(now)


def runs(directory: Runs = Path("runs"), as_json: AsJson = False) -> None:
    """List the runs below DIRECTORY: how far each came, and how well."""
    found: list[tuple[Path, RunSummary]] = []
    for path in state_dirs(directory):
        try:
            found.append((path, summary_of(path)))
        except StoreError as error:
            typer.echo(str(error), err=True)
    if not found:
        end(ExitCode.STATE_DIR, NO_RUN.format(directory), as_json)
    for path, run in found:
        if as_json:
            typer.echo(json.dumps({"state_dir": str(path), **asdict(run)}))
            continue
        numbers = f"loss {run.loss:.4f}" if run.loss is not None else "no loss"
        numbers += f", held out {run.eval_loss:.4f}" if run.eval_loss is not None else ""
        numbers += f", {run.tokens_per_s:,.0f} tokens/s" if run.tokens_per_s is not None else ""
        began = until(run.began_s)
        typer.echo(f"{path}: {run.run}, {began}, {run.phase}, step {run.step} of {run.steps}, {numbers}")

"""`coordinator start --dashboard`, `coordinator dashboard`, `coordinator runs`: runs live or ended.

The web packages are an extra and imported here only when a page is asked for.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scheduler.exit_codes import ExitCode

from .access import seconds
from .history import History, read_history
from .options import DEFAULT_STATE_DIR, AsJson, StateDir, end
from .progress import Show
from .store import StoreError
from .tokens import TokenError

if TYPE_CHECKING:
    from .dashboard.attach import Where
    from .dashboard.board import Board

DEFAULT_BIND = "127.0.0.1:8265"
TlsFiles = tuple[Path, Path] | None
Runs = Annotated[Path, typer.Argument(help="A directory with state directories in it.", file_okay=False)]


class DashboardPortInUse(Exception):
    """The dashboard's address cannot be listened on: names it."""


class DashboardRefused(Exception):
    """The dashboard is not served; `code` is the exit code."""

    def __init__(self, code: ExitCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def _where(bind: str, tls: TlsFiles, insecure: bool) -> Where:
    try:
        from .dashboard.attach import Where
    except ImportError as error:
        reason = f"--dashboard: found no package for it ({error}); pip install 'isthmus[dashboard]'"
        raise DashboardRefused(ExitCode.USAGE, reason) from error
    where = Where(bind, tls)
    if not (where.on_loopback or tls or insecure):
        raise DashboardRefused(
            ExitCode.INSECURE_BIND,
            f"--dashboard: found {bind}, which other machines can reach, and no certificate; make one with "
            "`coordinator certs`, serve it at 127.0.0.1 and tunnel, or pass --insecure",
        )
    return where


def run_with_dashboard(
    bind: str,
    valid: str,
    tls: TlsFiles,
    insecure: bool,
    state_dir: Path,
    job: str,
    resumed: bool,
    show: Show,
    work: Callable[[Callable[[dict[str, Any]], None]], Coroutine[Any, Any, ExitCode]],
) -> ExitCode:
    """Run `work(say)` with a page that shows what it says. `valid`: how long the token of its address holds.
    Raises DashboardRefused, DashboardPortInUse."""
    where = _where(bind, tls, insecure)
    from .dashboard.attach import DashboardError, listen, opened_at, told, watched
    from .dashboard.board import Board
    from .dashboard.replay import board_of

    try:
        valid_s = seconds(valid, "--dashboard-valid")
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
    as_json: AsJson = False,
) -> None:
    """Open the page of a run that has ended (or goes on without one), until Ctrl-C."""
    try:
        where = _where(at, None, insecure=False)
        from .dashboard.attach import DashboardError, listen, opened_at, watched
        from .dashboard.replay import board_of

        board = board_of(state_dir)
        listening = listen(where)
    except DashboardRefused as error:
        end(error.code, str(error), as_json)
    except StoreError as error:
        end(ExitCode.STATE_DIR, str(error), as_json)
    except DashboardError as error:
        end(ExitCode.PORT_IN_USE, str(error), as_json)
    event = opened_at(where, listening, state_dir, 0.0, time.time())  # on this machine: without a token
    typer.echo(json.dumps(event) if as_json else f"{event['address']} shows {board.run} until Ctrl-C")
    try:
        asyncio.run(watched(_until_interrupted(board, state_dir), board, state_dir, where, listening))
    except KeyboardInterrupt:
        raise typer.Exit(int(ExitCode.OK)) from None


async def _until_interrupted(board: Board, state_dir: Path) -> None:
    """Keep up with a run that another process goes on with."""
    from .dashboard.replay import board_of

    while True:
        await asyncio.sleep(2.0)
        now = await asyncio.to_thread(board_of, state_dir)
        if now.seq != board.seq:
            board.become(now)


def runs(directory: Runs = Path("runs"), as_json: AsJson = False) -> None:
    """List the runs below DIRECTORY: how far each came, and how well."""
    found: list[tuple[Path, History]] = []
    for database in sorted(directory.glob("**/run.sqlite")):
        try:
            found.append((database.parent, read_history(database.parent)))
        except StoreError as error:
            typer.echo(f"{database.parent}: {error}", err=True)
    if not found:
        end(ExitCode.STATE_DIR, f"{directory}: found no run in it or below, required one or more", as_json)
    for path, history in found:
        last = history.steps[-1] if history.steps else None
        held = history.evals[-1].loss if history.evals else None
        if as_json:
            row: dict[str, Any] = {
                "state_dir": str(path),
                "run": history.run,
                "job": history.job.name,
                "phase": history.phase,
            }
            row |= {
                "step": last.step + 1 if last else 0,
                "steps": history.job.steps,
                "loss": last.loss if last else None,
            }
            typer.echo(json.dumps(row | {"eval_loss": held, "attempts": history.attempts}))
            continue
        numbers = f"loss {last.loss:.4f}" if last else "no step"
        numbers += f", held out {held:.4f}" if held is not None else ""
        done = f"{last.step + 1 if last else 0} of {history.job.steps}"
        typer.echo(f"{path}: {history.run}, {history.phase}, step {done}, {numbers}")

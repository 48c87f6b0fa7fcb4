"""Options that several commands of `coordinator` share, and how a command ends with a number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from protos.log_lines import LogFormat
from scheduler.exit_codes import EXITS, ExitCode

DEFAULT_STATE_DIR = Path(".state")

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line on standard output.")]
LogFormatOption = Annotated[
    LogFormat,
    typer.Option(
        help="json: as --json, with time, level, run, worker and step in every line.",
        envvar="ISTHMUS_LOG_FORMAT",
    ),
]
StateDir = Annotated[
    Path, typer.Option(help="Where the run keeps its state.", envvar="ISTHMUS_STATE_DIR", file_okay=False)
]


def end(code: ExitCode, message: str, as_json: bool) -> NoReturn:
    """Say what is wrong where the reader looks, and exit with its number."""
    if as_json:
        event = {"event": "error", "code": int(code), "reason": message, "remedy": EXITS[code].remedy}
        typer.echo(json.dumps(event))
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(int(code))

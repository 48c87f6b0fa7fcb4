"""How a command ends that cannot do what it was asked: why, for people and as JSON, and with a number."""

from __future__ import annotations

import json
from typing import NoReturn

import typer

from scheduler.exit_codes import EXITS, ExitCode


def end(code: ExitCode, message: str, as_json: bool = False) -> NoReturn:
    """Say what is wrong where the reader looks, and exit with its number."""
    if as_json:
        event = {"event": "error", "code": int(code), "reason": message, "remedy": EXITS[code].remedy}
        typer.echo(json.dumps(event))
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(int(code))

"""How a command of `sim` ends that cannot do what it was asked: with its reason and a number."""

from __future__ import annotations

from typing import NoReturn

import typer

from scheduler.exit_codes import ExitCode
from scheduler.job import JobError
from scheduler.partition import DoesNotFit
from scheduler.reasons import reason_of
from sim.inputs import OptionsError


def code_of(error: Exception) -> ExitCode:
    """By the kind of error: the job's file, a model that fits nowhere, or else the command line."""
    if isinstance(error, DoesNotFit):
        return ExitCode.NO_PLAN
    in_a_file = isinstance(error, JobError) and not isinstance(error, OptionsError)
    return ExitCode.JOB_INVALID if in_a_file else ExitCode.USAGE


def refuse(command: str, error: Exception) -> NoReturn:
    """Say `error`, which names what was found and what is required, and exit with its number."""
    where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
    typer.echo(f"{command}: {where}{reason_of(error)}", err=True)
    raise typer.Exit(int(code_of(error))) from error

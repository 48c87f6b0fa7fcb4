"""Options that several commands of `coordinator` share, and how they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from protos.address import AddressError, split_host_port
from protos.ending import end
from protos.log_lines import LogFormat
from scheduler.exit_codes import ExitCode
from scheduler.job import JobError, JobSpec, parse_job
from scheduler.reasons import reason_of

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

JobFile = Annotated[Path, typer.Argument(metavar="JOB.yaml", help="The job file.")]
TokenFile = Annotated[
    Path | None, typer.Option(help="Default: the state directory's token.", envvar="ISTHMUS_TOKEN_FILE")
]


def read_job(path: Path, as_json: bool) -> JobSpec:
    """The job in `path`, or the end of the command."""
    try:
        return parse_job(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as e:
        end(ExitCode.JOB_INVALID, f"{path}: found no job to read ({reason_of(e)})", as_json)
    except JobError as e:
        end(ExitCode.JOB_INVALID, str(e), as_json)


def split_address(bind: str, as_json: bool, option: str = "--bind") -> tuple[str, int]:
    """Host and port of what `option` says, or the end of the command."""
    try:
        return split_host_port(bind, option)
    except AddressError as e:
        end(ExitCode.USAGE, str(e), as_json)

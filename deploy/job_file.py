"""Reads the job that a command is given, before any process is started."""

from __future__ import annotations

from pathlib import Path

from deploy.processes import ProcessFailed
from scheduler.exit_codes import ExitCode
from scheduler.job import JobError, JobSpec, parse_job
from scheduler.reasons import reason_of


def read_job(path: Path) -> JobSpec:
    """Raises ProcessFailed with JOB_INVALID and what is wrong, line by line."""
    try:
        return parse_job(path.read_text(encoding="utf-8"), str(path))
    except JobError as error:
        raise ProcessFailed(str(error), ExitCode.JOB_INVALID) from error
    except (OSError, UnicodeDecodeError) as error:
        reason = f"{path}: found no job to read ({reason_of(error)})"
        raise ProcessFailed(reason, ExitCode.JOB_INVALID) from error

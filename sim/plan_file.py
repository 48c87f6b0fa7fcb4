"""Reads a plan from a JSON file."""

from __future__ import annotations

import json
from pathlib import Path

from scheduler.plan import Plan, PlanError
from scheduler.plan_text import plan_of_document
from scheduler.reasons import reason_of

MAX_FILE_BYTES = 64 << 20


def read_plan(path: Path) -> Plan:
    """The plan in `path`: the document itself, or what stands under its key `plan`. Raises PlanError."""
    try:
        size = path.stat().st_size
        text = path.read_text(encoding="utf-8") if size <= MAX_FILE_BYTES else ""
        document = json.loads(text) if text else None
    except (OSError, ValueError) as e:
        raise PlanError(f"{path}: cannot be read as a plan: {reason_of(e)}") from e
    if document is None:
        raise PlanError(f"{path}: found {size} bytes, required a plan as JSON of at most {MAX_FILE_BYTES}")
    return plan_of_document(document, str(path))

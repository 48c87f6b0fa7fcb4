"""Every line of a structured log says which run, worker and step it is of."""

from __future__ import annotations

import json
import logging
import math
from typing import Any

from protos.log_lines import LogLines

EVERY = {"at", "level", "run", "worker", "step"}


def test_a_coordinators_lines_remember_run_and_step_and_name_the_worker() -> None:
    lines = LogLines(lambda: 1_790_000_000.25)
    told: list[dict[str, Any]] = [
        {"event": "listening", "run": "r-1", "step": 0},
        {"event": "step", "step": 7, "loss": math.nan},
        {"event": "left", "name": "w1", "reason": "no heartbeat"},
        {"event": "failed", "reason": "gone"},
    ]
    found = [json.loads(lines.of_event(event)) for event in told]
    assert all(line.keys() >= EVERY for line in found)
    assert [(x["run"], x["worker"], x["step"], x["level"]) for x in found] == [
        ("r-1", "", 0, "info"), ("r-1", "", 7, "info"), ("r-1", "w1", 7, "warning"), ("r-1", "", 7, "error"),
    ]  # fmt: skip
    assert found[0]["at"] == "2026-09-21T14:13:20.250+00:00"
    assert found[1]["loss"] is None


def test_a_worker_is_named_in_its_own_lines_and_in_those_of_pythons_logging() -> None:
    lines = LogLines(lambda: 0.0, "w0")
    lines.of_event({"event": "joined", "name": "w0", "run": "r-1"})
    lines.at_step(12)
    said = json.loads(lines.of_event({"event": "cut off", "reason": "stall"}))
    assert (said["run"], said["worker"], said["step"], said["level"]) == ("r-1", "w0", 12, "warning")
    try:
        raise ValueError("found -1")
    except ValueError as error:
        info = (ValueError, error, error.__traceback__)
    record = logging.LogRecord("worker.relay", logging.WARNING, "f", 1, "lost %s", ("x",), info)
    line = json.loads(lines.of_record(record))
    assert line.keys() >= EVERY
    assert (line["worker"], line["step"], line["logger"], line["text"]) == (
        "w0",
        12,
        "worker.relay",
        "lost x",
    )
    assert line["traceback"].endswith("ValueError: found -1")

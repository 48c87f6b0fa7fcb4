"""Structured logs of coordinator and worker: one JSON object a line, with run, worker and step in every one.

What happened is an event as `--json` prints it; what Python's own logging is told becomes a line of the same
kind. Knows no event by its meaning and opens no file.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal

LogFormat = Literal["text", "json"]
_LEVELS = {
    "error": "error", "failed": "error",
    "warning": "warning", "left": "warning", "cut off": "warning", "aborted": "warning",
    "disagreement": "warning",
}  # fmt: skip
"""Of events; all others are `info`."""


class LogLines:
    """Makes the lines; keeps the run, the worker and the step that they are of.

    An event's own `run`, `worker` and `step` are what its line says, and `run` and `step` are remembered;
    `worker` is `self.worker`, or where that is '' (at the coordinator) the event's `name`.
    """

    def __init__(self, now_s: Callable[[], float], worker: str = "") -> None:
        """`now_s`: seconds since 1970."""
        self._now_s = now_s
        self.worker = worker
        self.run = ""
        self.step = 0

    def of_event(self, event: Mapping[str, Any]) -> str:
        """The event's line."""
        self.run = str(event.get("run", self.run))
        self.step = int(event.get("step", self.step))
        kind = str(event.get("event", ""))
        worker = str(event.get("worker", self.worker or event.get("name", "")))
        return self._line(_LEVELS.get(kind, "info"), {**event, "worker": worker})

    def of_record(self, record: logging.LogRecord) -> str:
        """The line of what Python's logging was told."""
        fields: dict[str, Any] = {"event": "log", "logger": record.name, "text": record.getMessage()}
        if record.exc_info:
            fields["traceback"] = logging.Formatter().formatException(record.exc_info)
        return self._line(record.levelname.lower(), {**fields, "worker": self.worker})

    def _line(self, level: str, fields: Mapping[str, Any]) -> str:
        at = datetime.fromtimestamp(self._now_s(), UTC).isoformat(timespec="milliseconds")
        head = {"at": at, "level": level, "run": self.run, "worker": self.worker, "step": self.step}
        return json.dumps(finite({**head, **fields}), default=str)

    def at_step(self, step: int) -> None:
        """So many steps are done."""
        self.step = step

    def take_over_logging(self) -> None:
        """From now on Python's logging writes such lines to standard error."""
        handler = logging.StreamHandler()
        handler.setFormatter(_Formatter(self))
        logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)


class _Formatter(logging.Formatter):
    def __init__(self, lines: LogLines) -> None:
        super().__init__()
        self._lines = lines

    def format(self, record: logging.LogRecord) -> str:
        return self._lines.of_record(record)


def finite(value: Any) -> Any:
    """JSON has no NaN: what is not a number is null."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

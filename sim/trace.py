"""Where traces are: the shipped ones by name, others by path; read and written under size caps.

What a trace is stands in `scheduler.trace`, how it is written down in `scheduler.trace_text`.
"""

from __future__ import annotations

import os
from pathlib import Path

from scheduler.trace import LinkState, Node, Trace, TraceError
from scheduler.trace_text import CSV, JSON, MAX_FILE_BYTES, NODES_CSV, parse_trace
from scheduler.trace_write import format_trace

__all__ = ["LinkState", "Node", "Trace", "TraceError", "load", "save", "shipped"]

SHIPPED = Path(__file__).parent / "traces"


def shipped() -> list[str]:
    """Names of the traces that come with Isthmus."""
    return sorted(p.stem for p in SHIPPED.glob("*.json"))


def load(name_or_path: str | Path) -> Trace:
    """A shipped trace by name, another by the path of any of its files. Raises TraceError."""
    given = str(name_or_path)
    base = str(SHIPPED / given) if given in shipped() else _base(given)
    if not os.path.exists(base + CSV):
        raise TraceError(
            f"found no trace {given!r} (no file {base + CSV}); "
            f"required a file, or one of: {', '.join(shipped())}"
        )
    for suffix in (NODES_CSV, CSV, JSON):
        _check(base + suffix)
    try:
        with (
            open(base + CSV, encoding="utf-8", newline="") as rows,
            open(base + NODES_CSV, encoding="utf-8", newline="") as nodes,
            open(base + JSON, encoding="utf-8") as about,
        ):
            return parse_trace(os.path.basename(base), base, rows, nodes, about.read())
    except UnicodeDecodeError as e:
        raise TraceError(f"{base + JSON}: found bytes that are no UTF-8: {e.reason}") from e
    except OSError as e:
        raise TraceError(f"{base}: cannot be read: {e}") from e


def save(trace: Trace, path: str | Path) -> Path:
    """Write the trace's three files beside each other; returns the path of its csv. Raises TraceError."""
    base = _base(str(path))
    try:
        for suffix, lines in format_trace(trace).items():
            with open(base + suffix, "w", encoding="utf-8", newline="") as f:
                f.writelines(lines)
    except OSError as e:
        raise TraceError(f"{base}: cannot be written: {e}") from e
    return Path(base + CSV)


def _base(given: str) -> str:
    for suffix in (NODES_CSV, CSV, JSON):
        if given.endswith(suffix):
            return given.removesuffix(suffix)
    return given


def _check(path: str) -> None:
    try:
        size = os.stat(path).st_size
    except OSError as e:
        raise TraceError(
            f"{path}: cannot be read: {e.strerror}; required beside the trace's other files"
        ) from e
    if size > MAX_FILE_BYTES:
        raise TraceError(f"{path}: found {size} bytes, required at most {MAX_FILE_BYTES}")

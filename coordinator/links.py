"""The run's links as its workers measured them, plan after plan, kept in STATE/links.csv as a trace.

`link-trace/1`: what `sim run --trace STATE/links.csv` replays. Every worker is a node. Rows are only added:
of 500 workers there are 250,000 links, and a plan that changes little of what is known writes as little.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from scheduler.trace import About, Node, Pair, Trace, TraceError
from scheduler.trace_text import COLUMNS, CSV, JSON, NODES_CSV, parse_about, parse_nodes, parse_trace
from scheduler.trace_write import Row, format_about, format_nodes, format_rows

from .commands import MakePlan

LINKS = "links"
"""STATE/links.csv, STATE/links.nodes.csv, STATE/links.json."""
MAX_BYTES = 128 << 20
"""Of the rows, some three million; beyond that the trace begins anew."""
TAIL_BYTES = 4096


class LinksFile:
    """What was written so far, by one process. Calls must follow one another; they may take seconds."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._known: dict[Pair, Row] = {}
        """The last row of each link, of those that this process has written."""

    def record(self, request: MakePlan, now_s: float) -> int:
        """Add what is new in `request` to the run's trace; rows added. `now_s`: seconds since 1970."""
        now = datetime.fromtimestamp(now_s, UTC)
        rows = self._new(request)
        if not rows:
            return 0
        about, nodes, last_s = self._so_far() or (_about(now), {}, None)
        t_s = round((now - datetime.fromisoformat(about.start)).total_seconds(), 3)
        t_s = max(t_s, round(last_s + 0.001, 3)) if last_s is not None else 0.0
        devices = {d.name: Node(d.name, region=d.region) for d in request.devices}
        if last_s is None:
            self._replace(CSV, [",".join(COLUMNS) + "\n"])
        if nodes != nodes | devices or last_s is None:
            nodes |= devices
            self._replace(NODES_CSV, format_nodes(nodes.values()))
        place = {name: k for k, name in enumerate(nodes)}
        rows.sort(key=lambda row: (place[row.src], place[row.dst]))
        with (self._state_dir / f"{LINKS}{CSV}").open("a", encoding="utf-8") as out:
            out.writelines(format_rows(t_s, rows))
        self._replace(JSON, [format_about(LINKS, about)])  # the last: what tells readers of the rest
        self._known.update({(row.src, row.dst): row for row in rows})
        return len(rows)

    def _new(self, request: MakePlan) -> list[Row]:
        found = (Row(a, x.peer, 2 * x.latency_s, x.bandwidth_Bps or None) for a, x in request.links)
        return [row for row in found if self._known.get((row.src, row.dst)) != row]

    def _so_far(self) -> tuple[About, dict[str, Node], float] | None:
        """The trace's description, its nodes, and the time of its last row; None: it is to begin anew."""
        base = str(self._state_dir / LINKS)
        try:
            about = parse_about(Path(base + JSON).read_text(encoding="utf-8"), base + JSON)
            datetime.fromisoformat(about.start)
            with Path(base + NODES_CSV).open(encoding="utf-8") as lines:
                nodes = parse_nodes(lines, base + NODES_CSV)
            last_s = _last_s(Path(base + CSV))
        except (OSError, TraceError, ValueError):
            return None
        return about, nodes, last_s

    def _replace(self, suffix: str, lines: Iterable[str]) -> None:
        path = self._state_dir / f"{LINKS}{suffix}"
        part = path.with_name(f"{path.name}.part")
        part.write_text("".join(lines), encoding="utf-8")
        os.replace(part, path)


def _about(now: datetime) -> About:
    return About(
        one_way_factor=0.5,
        latency_kind="rtt, median of small echoes between workers",
        bw_kind="all TCP streams of a link together, pairs a few at a time",
        start=now.isoformat(timespec="milliseconds"),
        source="measured by this run's workers before each plan",
        licence="the measurer's",
    )


def _last_s(path: Path) -> float:
    """The time of the last whole row; what a process that was killed left of another is cut off.

    Raises OSError, ValueError.
    """
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        if not 0 < size <= MAX_BYTES:
            raise ValueError(f"found {size} bytes")
        start = max(0, size - TAIL_BYTES)
        file.seek(start)
        tail = file.read()
        whole = tail.rfind(b"\n") + 1
        if whole < len(tail):
            file.truncate(start + whole)
        header, *rows = tail[:whole].splitlines()
        if start == 0 and header.decode() != ",".join(COLUMNS):
            raise ValueError(f"found the columns {header!r}")
        return float(rows[-1].split(b",")[0]) if rows else 0.0


def recorded_links(state_dir: Path) -> Trace | None:
    """The trace so far; None without one, or when somebody has damaged it."""
    base = str(state_dir / LINKS)
    try:
        rows, nodes, about = (Path(base + s).read_text(encoding="utf-8") for s in (CSV, NODES_CSV, JSON))
        rows = rows[: rows.rfind("\n") + 1]  # while a row is being written it is none yet
        return parse_trace(LINKS, base, rows.splitlines(True), nodes.splitlines(True), about)
    except (OSError, TraceError, ValueError):
        return None

"""The run's links as its workers measured them, plan after plan, kept in STATE/links.csv as a trace.

`link-trace/1`: what `sim run --trace STATE/links.csv` replays. Every worker is a node.
"""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from scheduler.trace import About, LinkSeries, Node, Trace, TraceError, series
from scheduler.trace_text import CSV, JSON, NODES_CSV, parse_trace
from scheduler.trace_write import format_trace

from .commands import MakePlan

LINKS = "links"
"""STATE/links.csv, STATE/links.nodes.csv, STATE/links.json."""


def record_links(state_dir: Path, request: MakePlan, now_s: float) -> None:
    """Add what was measured for `request` to the run's trace. `now_s`: seconds since 1970."""
    now = datetime.fromtimestamp(now_s, UTC)
    trace = recorded_links(state_dir) or _new(now)
    t_s = round((now - datetime.fromisoformat(trace.about.start)).total_seconds(), 3)
    t_s = max(t_s, trace.duration_s + 0.001) if trace.links else 0.0
    nodes = trace.nodes | {d.name: Node(d.name, region=d.region) for d in request.devices}
    links = dict(trace.links)
    for src, link in request.links:
        row = series([(t_s, 2 * link.latency_s, link.bandwidth_Bps or None, None, None)])
        links[src, link.peer] = _followed_by(links.get((src, link.peer)), row)
    if links:
        _write(state_dir, replace(trace, nodes=nodes, links=links))


def _new(now: datetime) -> Trace:
    about = About(
        one_way_factor=0.5,
        latency_kind="rtt, median of small echoes between workers",
        bw_kind="all TCP streams of a link together, pairs a few at a time",
        start=now.isoformat(timespec="milliseconds"),
        source="measured by this run's workers before each plan",
        licence="the measurer's",
    )
    return Trace(LINKS, {}, {}, about)


def recorded_links(state_dir: Path) -> Trace | None:
    """The trace so far; None without one, or when somebody has damaged it: then it begins anew."""
    base = str(state_dir / LINKS)
    try:
        rows, nodes, about = (Path(base + s).read_text(encoding="utf-8") for s in (CSV, NODES_CSV, JSON))
        trace = parse_trace(LINKS, base, rows.splitlines(True), nodes.splitlines(True), about)
        datetime.fromisoformat(trace.about.start)
    except (OSError, TraceError, ValueError):
        return None
    return trace


def _followed_by(earlier: LinkSeries | None, row: LinkSeries) -> LinkSeries:
    if earlier is None:
        return row
    pairs = zip(earlier.columns(), row.columns(), strict=True)
    return LinkSeries(*(np.concatenate([a, b]) for a, b in pairs))


def _write(state_dir: Path, trace: Trace) -> None:
    """All three files beside their places first, then renamed into them, the json last."""
    parts = {suffix: state_dir / f"{LINKS}{suffix}.part" for suffix in (NODES_CSV, CSV, JSON)}
    for suffix, lines in format_trace(trace).items():
        parts[suffix].write_text("".join(lines), encoding="utf-8")
    for suffix, part in parts.items():
        os.replace(part, state_dir / f"{LINKS}{suffix}")

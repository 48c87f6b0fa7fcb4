"""A trace as its files' lines, `link-trace/1`, in the fewest digits that read back as the same trace."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np

from scheduler.trace import About, Node, Trace
from scheduler.trace_text import COLUMNS, CSV, FORMAT, JSON, NODE_COLUMNS, NODES_CSV, OPTIONAL, TEXTS


def format_trace(trace: Trace) -> dict[str, Iterator[str]]:
    """What ends each file's name -> its lines, the json last: a trace without one is not whole yet."""
    about = format_about(trace.name, trace.about)
    return {NODES_CSV: format_nodes(trace.nodes.values()), CSV: _row_lines(trace), JSON: iter([about])}


@dataclass(frozen=True, slots=True)
class Row:
    """A link at a moment: round trip in s, bandwidth in bytes/s; None is unknown."""

    src: str
    dst: str
    rtt_s: float | None
    bandwidth_Bps: float | None


def format_rows(t_s: float, rows: Iterable[Row]) -> Iterator[str]:
    """Rows of one moment, in the columns that every trace has: for who adds to a file that is there."""
    time = _decimal(t_s)
    for row in rows:
        rtt = "" if row.rtt_s is None else _decimal(row.rtt_s, 3)
        bandwidth = "" if row.bandwidth_Bps is None else _decimal(row.bandwidth_Bps * 8, -6)
        yield _cells(time, row.src, row.dst, rtt, bandwidth)


def _cells(*cells: str) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(cells)
    return out.getvalue()


def _decimal(value: float, power: int = 0) -> str:
    """`value` x 10^power exactly, in the fewest digits that read back as `value`; '' for NaN."""
    return "" if value != value else f"{Decimal(repr(float(value))).scaleb(power).normalize():f}"


def format_nodes(nodes: Iterable[Node]) -> Iterator[str]:
    """The lines of a trace's second file."""
    yield _cells(*NODE_COLUMNS)
    for n in nodes:
        degrees = ("" if v is None else _decimal(v) for v in (n.latitude, n.longitude))
        yield _cells(n.name, n.provider, n.region, *degrees, str(n.n_devices))


def _row_lines(trace: Trace) -> Iterator[str]:
    """By time; links of one moment in the order of their nodes."""
    place = {name: k for k, name in enumerate(trace.nodes)}
    pairs = sorted(trace.links, key=lambda p: (place[p[0]], place[p[1]]))
    ends = [(_cells(*pair)).rstrip("\n") for pair in pairs]
    columns = [np.concatenate([trace.links[p].columns()[k] for p in pairs]) for k in range(5)]
    link = np.repeat(np.arange(len(pairs)), [len(trace.links[p]) for p in pairs])
    more = not all(np.isnan(c).all() for c in columns[3:])
    yield _cells(*COLUMNS, *(OPTIONAL if more else ()))
    for i in np.lexsort((link, columns[0])):
        t, rtt, bandwidth, jitter, loss = (c[i] for c in columns)
        tail = f",{_decimal(jitter, 3)},{_decimal(loss)}" if more else ""
        yield f"{_decimal(t)},{ends[link[i]]},{_decimal(rtt, 3)},{_decimal(bandwidth * 8, -6)}{tail}\n"


def format_about(name: str, about: About) -> str:
    """The text of a trace's third file."""
    within = {
        "delay_ms": None if about.within_rtt_s is None else float(_decimal(about.within_rtt_s, 3)),
        "bw_mbps": None
        if about.within_bandwidth_Bps is None
        else float(_decimal(about.within_bandwidth_Bps * 8, -6)),
    }
    known: dict[str, Any] = {
        "format": FORMAT,
        "name": name,
        "latency_kind": about.latency_kind,
        "one_way_factor": about.one_way_factor,
        "bw_kind": about.bw_kind,
        "intra_node": {k: v for k, v in within.items() if v is not None},
        "step_s": about.step_s,
        **{key: getattr(about, key) for key in TEXTS[2:]},
    }
    body = {k: v for k, v in known.items() if v not in (None, "", {})} | dict(about.other)
    return json.dumps(body, indent=1, ensure_ascii=False) + "\n"

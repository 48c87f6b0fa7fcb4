"""The links that the run's workers measured, by region, from the trace that its state directory keeps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from scheduler.trace import Trace
from scheduler.trace_text import JSON

from ..links import LINKS, recorded_links


class LinksFile:
    """The trace of a state directory, read again only when it was written anew: it may be large."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._read: tuple[int, Trace | None] = (-1, None)

    def trace(self) -> Trace | None:
        try:
            written_ns = (
                (self._state_dir / f"{LINKS}{JSON}").stat().st_mtime_ns
            )  # it is renamed into place last
        except OSError:
            return None
        if self._read[0] != written_ns:
            self._read = written_ns, recorded_links(self._state_dir)
        return self._read[1]


def measured_links(trace: Trace | None, regions: Mapping[str, str]) -> list[dict[str, Any]]:
    """One entry a pair of regions: median latency and bandwidth of its links; [] while none is measured."""
    if trace is None:
        return []
    found: dict[tuple[str, str], list[tuple[float | None, float | None]]] = {}
    for a, b in trace.links:
        if a in regions and b in regions:
            state = trace.at(trace.duration_s, a, b)
            found.setdefault((regions[a], regions[b]), []).append((state.one_way_s, state.bandwidth_Bps))
    return [
        {
            "from": a, "to": b, "links": len(values),
            "latency_s": _median(x for x, _ in values), "bandwidth_Bps": _median(x for _, x in values),
        }
        for (a, b), values in sorted(found.items())
    ]  # fmt: skip


def _median(values: Iterable[float | None]) -> float | None:
    known = [x for x in values if x is not None]
    return median(known) if known else None

"""The links that the run's workers measured, by region, from the trace that its state directory keeps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from scheduler.trace import Trace
from scheduler.trace_text import JSON

from ..links import LINKS, recorded_links


class LinksByRegion:
    """What a state directory's trace says, made again only when it was written anew or workers have changed.

    The trace itself is not kept: of 500 workers it has 250,000 links.
    """

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._made: tuple[object, list[dict[str, Any]]] = (None, [])

    def read(self, regions: Mapping[str, str]) -> list[dict[str, Any]]:
        """One entry a pair of regions, of the workers' `regions`; [] while no link is measured."""
        try:  # the json is renamed into place after the rest
            written_ns = (self._state_dir / f"{LINKS}{JSON}").stat().st_mtime_ns
        except OSError:
            return []
        of = written_ns, frozenset(regions.items())
        if self._made[0] != of:
            trace = recorded_links(self._state_dir)
            self._made = of, measured_links(trace, regions) if trace is not None else []
        return self._made[1]


def measured_links(trace: Trace, regions: Mapping[str, str]) -> list[dict[str, Any]]:
    """Median latency and bandwidth of the links between each two regions, as they were measured last."""
    end_s = trace.duration_s
    found: dict[tuple[str, str], list[tuple[float | None, float | None]]] = {}
    for a, b in trace.links:
        if a in regions and b in regions:
            state = trace.at(end_s, a, b)
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

"""The links that the run's workers measured, by region, from the trace that its state directory keeps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from ..links import recorded_links


def measured_links(state_dir: Path, regions: Mapping[str, str]) -> list[dict[str, Any]]:
    """One entry a pair of regions: median latency and bandwidth of its links; [] while none is measured."""
    trace = recorded_links(state_dir)
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

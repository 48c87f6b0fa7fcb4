"""The links of a packet switch as a trace has them: conditions over time for every pair of nodes.

Reads no clock and opens nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from math import inf
from random import Random

from scheduler.trace import LinkState, Trace
from sim.emulate import ShapeOptions, require_links
from sim.shaped_link import Conditions, ShapedLink

LEAST_QUEUE_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class QueueOptions:
    """What a trace does not say of a link."""

    queue_bytes: int = 0
    """In front of a link; 0: bandwidth x round trip of the moment, the classical size, at least 256 KiB."""
    seed: int = 0
    """Of jitter and loss: the same packets at the same times meet the same fate."""


def conditions(state: LinkState, shape: ShapeOptions, queue: QueueOptions) -> Conditions:
    """A link as the trace has it at a moment. What the trace does not know neither delays nor limits."""
    rate_Bps = inf if state.bandwidth_Bps is None else state.bandwidth_Bps * shape.bandwidth_scale
    rtt_s = (state.rtt_s or 0.0) * shape.delay_scale
    # Of an unlimited link nothing ever waits.
    classical = inf if rate_Bps == inf else max(rate_Bps * rtt_s, LEAST_QUEUE_BYTES)
    return Conditions(
        delay_s=(state.one_way_s or 0.0) * shape.delay_scale,
        rate_Bps=rate_Bps,
        jitter_s=(state.jitter_s or 0.0) * shape.delay_scale,
        loss=state.loss or 0.0,
        queue_bytes=queue.queue_bytes or classical,
    )


def switched_links(
    trace: Trace, places: Sequence[str], shape: ShapeOptions, queue: QueueOptions, start_s: float
) -> dict[tuple[int, int], ShapedLink]:
    """Links [src, dst] between nodes at `places` of the trace, whose time 0 is `start_s` of the clock.

    Nodes of one place are not held back. Raises TraceError for a place or link that the trace lacks.
    """
    require_links(trace, places)
    links = {}
    for src, dst in permutations(range(len(places)), 2):
        a, b = places[src], places[dst]
        changes = [(start_s, Conditions())]
        if a != b:
            times = trace.links[a, b].times_s if shape.time_scale else trace.links[a, b].times_s[:1]
            changes = [
                (start_s + t / (shape.time_scale or 1.0), conditions(trace.at(t, a, b), shape, queue))
                for t in map(float, times)
            ]
        links[src, dst] = ShapedLink(changes, Random(f"{queue.seed} {src} {dst}"))
    return links

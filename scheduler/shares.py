"""Where the time of a step goes, by its timeline: computing, waiting for bytes or for others, reducing."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass

from scheduler.timeline import Timeline, use_by_rank


@dataclass(frozen=True, slots=True)
class Shares:
    """Means over the ranks, in s; the four add up to the step's duration."""

    compute_s: float
    exposed_s: float
    """Waiting while something was on its way to the waiting rank: communication that nothing hides."""
    bubble_s: float
    """The rest of waiting, and idling: nothing was there to do, nor on its way."""
    reduce_s: float

    def parts(self) -> tuple[tuple[str, float], ...]:
        return (
            ("compute", self.compute_s),
            ("exposed communication", self.exposed_s),
            ("bubble", self.bubble_s),
            ("reduction", self.reduce_s),
        )


def time_shares(timeline: Timeline) -> Shares:
    """What an average rank did with the step."""
    uses = use_by_rank(timeline)
    coming = _in_flight(timeline)
    exposed = sum(_overlap(s.start_s, s.end_s, coming[s.rank]) for s in timeline.spans if s.kind == "wait")
    n = max(timeline.n_ranks, 1)
    waited = sum(u.wait_s + u.idle_s for u in uses)
    return Shares(
        sum(u.busy_s for u in uses) / n,
        exposed / n,
        (waited - exposed) / n,
        sum(u.reduce_s for u in uses) / n,
    )


def _in_flight(timeline: Timeline) -> dict[int, list[tuple[float, float]]]:
    """For each rank when something was on its way to it: disjoint intervals, ascending."""
    sends: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for s in timeline.spans:
        if s.kind == "send":
            sends[s.peer].append((s.start_s, s.end_s))
    merged: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for rank, intervals in sends.items():
        for start, end in sorted(intervals):
            if merged[rank] and start <= merged[rank][-1][1]:
                merged[rank][-1] = merged[rank][-1][0], max(end, merged[rank][-1][1])
            else:
                merged[rank].append((start, end))
    return merged


def _overlap(start_s: float, end_s: float, intervals: list[tuple[float, float]]) -> float:
    """Seconds of [start, end] that lie in the disjoint, ascending `intervals`."""
    total = 0.0
    for k in range(bisect_right(intervals, start_s, key=lambda i: i[1]), len(intervals)):
        a, b = intervals[k]
        if a >= end_s:
            break
        total += min(end_s, b) - max(start_s, a)
    return total

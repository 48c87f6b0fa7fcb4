"""Where the time of a step goes, by its timeline: computing, waiting for bytes or for others, reducing."""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.timeline import Timeline, use_by_rank


@dataclass(frozen=True, slots=True)
class Shares:
    """Means over the ranks, in s; the four add up to the step's duration."""

    compute_s: float
    exposed_s: float
    """Waiting for what had been handed over: communication that nothing hides, with its queues."""
    bubble_s: float
    """The rest of waiting, and idling: for work that others had not done yet."""
    reduce_s: float

    def parts(self) -> tuple[tuple[str, float], ...]:
        return (
            ("compute", self.compute_s),
            ("exposed communication", self.exposed_s),
            ("bubble", self.bubble_s),
            ("reduction", self.reduce_s),
        )


def time_shares(timeline: Timeline) -> Shares:
    """What an average rank did with the step.

    A measured timeline's ranks have clocks of their own, so there the border between exposed and bubble is
    as good as their steps began together.
    """
    uses = use_by_rank(timeline)
    sent_s = {(s.rank, s.peer, s.mb): s.start_s for s in timeline.spans if s.kind == "send"}
    exposed = 0.0
    for s in timeline.spans:
        if s.kind == "wait" and (s.peer, s.rank, s.mb) in sent_s:
            exposed += max(0.0, s.end_s - max(s.start_s, sent_s[s.peer, s.rank, s.mb]))
    n = max(timeline.n_ranks, 1)
    waited = sum(u.wait_s + u.idle_s for u in uses)
    return Shares(
        sum(u.busy_s for u in uses) / n,
        exposed / n,
        (waited - exposed) / n,
        sum(u.reduce_s for u in uses) / n,
    )

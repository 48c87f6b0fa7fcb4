"""The step as a transaction, as a rank sees it: it votes, waits, and steps only when all have voted.

Who collects the votes is not known here: in a run it is the coordinator; ranks of one process have a
`Committee`, which ships for tests and for whoever runs a plan in threads.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Protocol

from scheduler.gradient_norm import norm_of
from scheduler.plan import Plan
from worker.transport import TransportAborted


@dataclass(frozen=True, slots=True)
class Vote:
    """A rank has reduced the gradients of `step`, and could step now."""

    step: int
    squares: tuple[float, ...]
    """Of each of its layers' gradients, summed."""
    loss_sum: float
    tokens: int
    duration_s: float
    """Since the step began on this rank."""
    sent_bytes: int
    raw_bytes: int
    own_square: float = 0.0
    """Of its own gradients, before replicas were added; summed."""
    bad_activation: bool = False
    """It received an activation that was not finite."""
    bad_gradient: bool = False
    check_error: float | None = None
    """How far off another rank's work was found to be, where this one checked it."""


class Agreement(Protocol):
    """One rank's way to the others' consent."""

    def commit(self, vote: Vote) -> float:
        """Wait until every rank has voted for the step; the norm of this pipeline's gradient.

        Raises TransportAborted if the plan ends before that: then no rank has stepped, or every rank that
        lives will."""


class Committee:
    """The votes of all ranks of a plan, in one process."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._votes: dict[int, dict[int, Vote]] = {}
        """By step and rank."""
        self._changed = threading.Condition()
        self._reason: str | None = None

    def seat(self, rank: int) -> Agreement:
        return _Seat(self, rank)

    def abort(self, reason: str) -> None:
        """End what waits for votes that will not come."""
        with self._changed:
            self._reason = self._reason or reason
            self._changed.notify_all()

    def vote(self, rank: int, vote: Vote) -> float:
        plan = self._plan
        with self._changed:
            votes = self._votes.setdefault(vote.step, {})
            votes[rank] = vote
            self._changed.notify_all()
            while len(votes) < plan.n_ranks:
                if self._reason is not None:
                    raise TransportAborted(self._reason)
                self._changed.wait()
            self._votes.pop(vote.step - 1, None)
        replica = plan.replica_of(rank)
        return norm_of(votes[plan.rank(replica, s)].squares for s in range(plan.n_stages))


@dataclass(frozen=True, slots=True)
class _Seat:
    committee: Committee
    rank: int

    def commit(self, vote: Vote) -> float:
        return self.committee.vote(self.rank, vote)

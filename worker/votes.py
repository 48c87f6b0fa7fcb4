"""The coordinator as the one who collects votes: a rank's vote goes up, its commit comes down.

A commit that was told counts even if the plan was ended right after: the others have it too. Knows no
session: events leave by what it is given, and commits are brought to it by whoever reads them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from protos import orchestrator_pb2 as pb
from protos.convert import spot_check_from_message
from scheduler.spot_checks import SpotCheck
from worker.agreement import Vote
from worker.transport import TransportAborted


class Votes:
    """One rank's agreement for one plan. `commit` blocks the thread of work; the rest any thread may call."""

    def __init__(self, plan_version: int, emit: Callable[[pb.Event], None]) -> None:
        self.plan_version, self._emit = plan_version, emit
        self._changed = threading.Condition()
        self._committed: tuple[int, float] | None = None
        """(step, norm) that was told last."""
        self._check: SpotCheck | None = None
        """That was told with it, of the step behind it."""
        self._reason: str | None = None

    def commit(self, vote: Vote) -> float:
        message = pb.StepVote(
            plan_version=self.plan_version,
            step=vote.step,
            loss_sum=vote.loss_sum,
            tokens=vote.tokens,
            squares=vote.squares,
            duration_s=vote.duration_s,
            sent_bytes=vote.sent_bytes,
            raw_bytes=vote.raw_bytes,
            own_square=vote.own_square,
            bad_activation=vote.bad_activation,
            bad_gradient=vote.bad_gradient,
            checked=vote.check_error is not None,
            check_error=vote.check_error or 0.0,
        )
        self._emit(pb.Event(step_vote=message))
        with self._changed:
            while self._committed is None or self._committed[0] != vote.step:
                if self._reason is not None:
                    raise TransportAborted(self._reason)
                self._changed.wait()
            return self._committed[1]

    def check_of(self, step: int) -> SpotCheck | None:
        """What is checked in `step`, if this rank was told that it has a part in it."""
        with self._changed:
            return self._check if self._check is not None and self._check.step == step else None

    def told(self, commit: pb.Commit) -> None:
        """A commit came; one of another plan is none of ours."""
        if commit.plan_version != self.plan_version:
            return
        with self._changed:
            self._committed = (commit.step, commit.grad_norm)
            told = commit.check if commit.HasField("check") else None
            self._check = spot_check_from_message(told, commit.step + 1) if told is not None else None
            self._changed.notify_all()

    def abort(self, reason: str) -> None:
        """The plan is over: what has no commit yet gets none."""
        with self._changed:
            self._reason = self._reason or reason
            self._changed.notify_all()

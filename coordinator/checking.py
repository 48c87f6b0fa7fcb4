"""What a spot check said of a step that all ranks have voted for. Pure.

`scheduler/spot_checks.py` draws and judges; this knows votes, names and identities.
"""

from __future__ import annotations

from collections.abc import Mapping

from scheduler.spot_checks import CheckVerdict, judge_check

from .commands import RecordCheck
from .events import StepVote
from .records import State, identity


def outcome(state: State, votes: Mapping[str, StepVote]) -> tuple[CheckVerdict, RecordCheck] | None:
    """The verdict and what is to be kept of it; None: nothing was checked in this step, or nobody said how it
    came out."""
    check, plan = state.check, state.plan
    if check is None or plan is None or check.step != state.done:
        return None
    errors = {r: e for r in check.checkers if (e := votes[plan.device(r)].check_error) is not None}
    if not errors:
        return None
    workers = tuple(identity(state.members[name]) for name in state.ranks)
    verdict = judge_check(check, plan, errors, state.options.check_tolerance, workers, state.partners)
    named = {plan.device(r): e for r, e in errors.items()}
    checked = plan.device(check.checked(plan))
    reason = verdict.reason or (
        f"stage {check.stage} of {checked} was computed again by {', '.join(named)}:"
        f" at most {max(errors.values()):.2g} apart"
    )
    return verdict, RecordCheck(check, checked, named, verdict.kind, reason)

"""The votes of a step held against each other and against the run's history: whose numbers are bad.

`scheduler/bad_numbers.py` judges and says what follows; this knows which votes make a step, and who stays the
same when a worker comes back under another name. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from scheduler.bad_numbers import Conduct, Decision, Report, decide, judge
from scheduler.plan import Plan

from .events import StepVote
from .records import Member, State, put


@dataclass(frozen=True, slots=True)
class BadNumbers:
    """What becomes of a step, `decision.workers` by name, and how the conduct of all stands after it."""

    decision: Decision
    conduct: Conduct


def identity(member: Member) -> str:
    """A worker's public key, which outlasts its name; its name if it has none."""
    return member.peer.curve_public_key.decode() or member.device.name


def reports(plan: Plan, votes: Mapping[str, StepVote]) -> list[Report]:
    """One a rank; every rank must have voted."""
    found = []
    for rank in range(plan.n_ranks):
        vote, replica, stage = votes[plan.device(rank)], plan.replica_of(rank), plan.stage_of(rank)
        share, own = plan.micro_batches[replica], vote.own_square
        found.append(Report(rank, replica, stage, own, share, vote.bad_activation, vote.bad_gradient))
    return found


def bad_numbers(state: State, last: StepVote) -> BadNumbers | None:
    """What is to be done instead of committing the step that `last` completes; None: it is to be committed,
    is not complete, or ends the run, which is `transaction.py`'s to say."""
    if not _completes(state, last):
        return None
    assert state.plan is not None
    verdict = judge(reports(state.plan, put(state.votes, last.worker, last)), state.norms)
    who = {identity(state.members[name]): name for name in state.ranks}
    decision, conduct = decide(
        verdict, tuple(who), state.plan.n_replicas, state.done, state.conduct, state.repeated == state.done
    )
    if decision.action in ("commit", "diverged"):
        return None
    return BadNumbers(replace(decision, workers=tuple(who[w] for w in decision.workers)), conduct)


def _completes(state: State, vote: StepVote) -> bool:
    """Whether it is the last vote of the step that is to be done."""
    of_step = vote.plan_version == state.plan_version and vote.step == state.done < state.granted
    missing = set(state.ranks) - set(state.votes)
    return state.phase in ("running", "draining") and of_step and missing == {vote.worker}

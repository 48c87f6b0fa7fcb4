"""The votes of a step held against each other and against the run's history: whose numbers are bad.

`scheduler/bad_numbers.py` judges and says what follows, of spot checks too; this knows which votes make a
step. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from scheduler.bad_numbers import Conduct, Decision, Report, decide, judge, without
from scheduler.departures import Departure
from scheduler.plan import Plan
from scheduler.spot_checks import CheckVerdict

from .checking import outcome
from .commands import RecordCheck
from .events import StepVote
from .records import State, identity, put


@dataclass(frozen=True, slots=True)
class BadNumbers:
    """What becomes of a step, `decision.workers` by name, and how the conduct of all stands after it."""

    decision: Decision
    conduct: Conduct
    code: Departure = Departure.BAD_NUMBERS
    """Of those who go."""
    said: tuple[CheckVerdict, RecordCheck] | None = None
    """The spot check that it follows from."""


def reports(plan: Plan, votes: Mapping[str, StepVote]) -> list[Report]:
    """One a rank; every rank must have voted."""
    found = []
    for rank in range(plan.n_ranks):
        vote, replica, stage = votes[plan.device(rank)], plan.replica_of(rank), plan.stage_of(rank)
        share, own, layers = plan.micro_batches[replica], vote.own_square, plan.partition[stage]
        found.append(Report(rank, replica, stage, layers, own, share, vote.bad_activation, vote.bad_gradient))
    return found


def bad_numbers(state: State, last: StepVote) -> BadNumbers | None:
    """What is to be done instead of committing the step that `last` completes; None: it is to be committed,
    is not complete, or ends the run, which is `transaction.py`'s to say."""
    if not _completes(state, last):
        return None
    assert state.plan is not None
    votes = put(state.votes, last.worker, last)
    verdict = judge(reports(state.plan, votes), state.norms)
    who = {identity(state.members[name]): name for name in state.ranks}
    decision, conduct = decide(
        verdict, tuple(who), state.plan.n_replicas, state.done, state.conduct, state.repeated == state.done
    )
    if decision.action == "commit":
        return _spot_check(state, votes, who)
    if decision.action == "diverged":
        return None
    return BadNumbers(replace(decision, workers=tuple(who[w] for w in decision.workers)), conduct)


def _spot_check(state: State, votes: Mapping[str, StepVote], who: Mapping[str, str]) -> BadNumbers | None:
    """What a spot check says against the step, if anything. `who`: names by identity, by rank."""
    said = outcome(state, votes)
    if said is None or said[0].kind == "agree":
        return None
    verdict, workers = said[0], tuple(who)
    named = tuple(workers[r] for r in verdict.ranks)
    if verdict.kind == "at fault":
        decision, conduct = without(named, verdict.reason, state.done, state.conduct)
    else:  # one of two, and it may be the other: it is not held against it
        reason = f"{verdict.reason}; the step is done again without {', '.join(who[w] for w in named)}"
        decision, conduct = Decision("repeat without", named, reason), state.conduct
    decision = replace(decision, workers=tuple(who[w] for w in decision.workers))
    return BadNumbers(decision, conduct, Departure.DISAGREED, said)


def _completes(state: State, vote: StepVote) -> bool:
    """Whether it is the last vote of the step that is to be done."""
    of_step = vote.plan_version == state.plan_version and vote.step == state.done < state.granted
    missing = set(state.ranks) - set(state.votes)
    return state.phase in ("running", "draining") and of_step and missing == {vote.worker}

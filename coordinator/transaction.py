"""A step as a transaction: every rank votes, the step is written down, and only then all are told to step.

Until the last vote is in nothing has changed anywhere, so a step that loses a rank is forgotten by all and
done again, with the same samples. Samples are consumed by the commit. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from scheduler.bad_numbers import History, judge
from scheduler.blame import culprits
from scheduler.exit_codes import ExitCode
from scheduler.gradient_norm import norm_of
from scheduler.liveness import remember
from scheduler.plan import Plan
from scheduler.spot_checks import draw

from .checking import outcome
from .commands import Commit, Order, RecordStep
from .drive import proceed
from .events import StepVote
from .numbers import reports
from .records import State, Transition, fail, frozen, ignored, put, step_to, then


def on_step_vote(state: State, event: StepVote, now: float) -> Transition:
    """Collects one rank's vote; commits the step when all ranks have voted for it."""
    name, step = event.worker, event.step
    if state.phase not in ("running", "draining") or name not in state.ranks:
        return ignored(state, f"{name} votes for a step that nobody waits for ({step})")
    if event.plan_version != state.plan_version:
        return ignored(state, f"{name} votes for step {step} of plan {event.plan_version}, which is over")
    if step != state.done or step >= state.granted:
        return ignored(state, f"{name} votes for step {step}, step {state.done} is to be done")
    if name in state.votes:
        return ignored(state, f"{name} votes for step {step} twice")
    state = replace(state, votes=put(state.votes, name, event))
    if len(state.votes) < len(state.ranks):
        return Transition(state)
    committed = _commit(state, now)
    return committed if committed.state.phase == "failed" else then(committed, proceed(committed.state, now))


def _commit(state: State, now: float) -> Transition:
    assert state.plan is not None
    plan, step, b, votes = state.plan, state.done, state.options.global_batch, state.votes
    last = [votes[plan.device(r)] for r in plan.group(plan.n_stages - 1)]
    tokens = sum(e.tokens for e in last)
    if tokens == 0:
        names = ", ".join(e.worker for e in last)
        return fail(
            state, ExitCode.WORKER_FAILED, f"step {step}: found no token counted by the last stages ({names})"
        )
    loss = sum(e.loss_sum for e in last) / tokens
    if not math.isfinite(loss):
        reason = f"step {step}: found a loss of {loss}, required a number{_whose(plan, votes)}"
        return fail(state, ExitCode.DIVERGED, reason)
    norms = [_norm(plan, replica, votes) for replica in range(plan.n_replicas)]
    if not all(map(math.isfinite, norms)):
        return fail(state, ExitCode.DIVERGED, f"step {step}: {_not_finite(plan, votes)}{_whose(plan, votes)}")
    record = RecordStep(
        step=step,
        plan_version=plan.version,
        loss=loss,
        tokens=tokens,
        grad_norm=max(norms),
        duration_s=max(e.duration_s for e in votes.values()),
        sent_bytes=sum(e.sent_bytes for e in votes.values()),
        raw_bytes=sum(e.raw_bytes for e in votes.values()),
        first_sample=step * b,
        end_sample=(step + 1) * b,
    )
    said = outcome(state, votes)
    # The record comes first: what was told to anybody is written down.
    every = state.options.checks_every if step + 1 < state.options.steps else 0
    check = draw(plan, step + 1, every, state.options.check_key)
    told = check.told(plan) if check is not None else ()
    orders = [
        Order(
            plan.device(r),
            Commit(plan.version, step, norms[plan.replica_of(r)], check if r in told else None),
        )
        for r in range(plan.n_ranks)
    ]
    return step_to(
        state,
        f"step {step} is done",
        record,
        *((said[1],) if said is not None else ()),
        *orders,
        done=step + 1,
        votes=frozen({}),
        check=check,
        checked=f"step {step}: {said[1].reason}" if said is not None else state.checked,
        progress_s=now,
        steps_s=remember(state.steps_s, max(0.0, now - state.progress_s)),
        loss=loss,
        norms=_norms(state, plan).add(reports(plan, votes)),
        grad_norm=max(norms),
    )


def _norms(state: State, plan: Plan) -> History:
    """The history that the step adds to: a new one where numbers that looked bad came out the same again."""
    return History() if state.repeated == state.done and plan.n_replicas == 1 else state.norms


def _norm(plan: Plan, replica: int, votes: Mapping[str, StepVote]) -> float:
    return norm_of(votes[plan.device(plan.rank(replica, s))].squares for s in range(plan.n_stages))


def _whose(plan: Plan, votes: Mapping[str, StepVote]) -> str:
    """Where the bad numbers began, as far as the ranks' own gradients tell."""
    verdict = judge(reports(plan, votes), History())
    return f"; {verdict.reason}" if verdict.kind in ("not finite", "diverged") else ""


def _not_finite(plan: Plan, votes: Mapping[str, StepVote]) -> str:
    """Whose gradient it is: worker, rank and layer."""
    for rank in range(plan.n_ranks):
        worker = plan.device(rank)
        for i, square in enumerate(votes[worker].squares):
            if not math.isfinite(square):
                layer = plan.partition[plan.stage_of(rank)][0] + i
                return (
                    f"found a gradient of layer {layer} on {worker} (rank {rank}) whose norm is no finite "
                    "number; required one: resume with a lower lr, or in fp32"
                )
    return "found a gradient whose norm is beyond all numbers; resume with a lower lr, or in fp32"


@dataclass(frozen=True, slots=True)
class Overdue:
    """A step that takes far longer than those before. `workers`: who keeps it from ending, as far as is told;
    nobody: connections do, and are made anew."""

    reason: str
    workers: tuple[str, ...]


def overdue(state: State, now: float) -> Overdue | None:
    """What is to be done about a step that does not end, or None. The first time whoever hangs goes; when it
    is not done the second time either, whoever lacks bytes that were sent does, too."""
    if state.phase not in ("running", "draining") or state.granted <= state.done:
        return None
    limit = state.options.step.deadline_s(state.steps_s)
    waited = now - state.progress_s
    if waited <= limit:
        return None
    assert state.plan is not None
    late = frozenset(r for r, n in enumerate(state.ranks) if n not in state.votes)
    waits_for = {r: state.members[n].waits_for for r, n in enumerate(state.ranks)}
    out = culprits(waits_for, late, again=state.overdue_at == state.done)
    names = ", ".join(state.plan.device(r) for r in sorted(late))
    reason = f"step {state.done} is not done after {waited:.0f} s (limit {limit:.0f} s); waiting for {names}"
    return Overdue(reason, tuple(state.plan.device(r) for r in out))

"""Spot checks in a step: honest ranks agree to the last bit and change nothing; a lie is measured."""

from __future__ import annotations

from dataclasses import replace
from math import isinf, isnan

import pytest
import torch
from torch import Tensor

from scheduler.plan import Plan
from scheduler.spot_checks import SpotCheck
from tests.worker.pipelines import Rank, Run, in_threads, make_job, make_plan, make_ranks, train
from worker.agreement import Agreement, Vote
from worker.spot_check import relative_error
from worker.stage import Stage

STEPS = 3
Found = dict[tuple[int, int], float]
"""(step, checker) -> how far off."""


class Noting:
    """A rank's agreement, and what it voted of checks."""

    def __init__(self, seat: Agreement, rank: int, found: Found) -> None:
        self._seat, self._rank, self._found = seat, rank, found

    def commit(self, vote: Vote) -> float:
        if vote.check_error is not None:
            self._found[vote.step, self._rank] = vote.check_error
        return self._seat.commit(vote)


def checked_run(plan: Plan, checks: dict[int, SpotCheck], precision: str = "fp32") -> tuple[Run, Found]:
    ranks, found = make_ranks(make_job(precision=precision), plan), Found()
    for i, rank in enumerate(ranks):

        def check_of(step: int, i: int = i) -> SpotCheck | None:
            check = checks.get(step)
            return check if check is not None and i in check.told(plan) else None

        agreement = Noting(rank.context.agreement, i, found)
        rank.context = replace(rank.context, check_of=check_of, agreement=agreement)

    def steps(rank: Rank) -> list[object]:
        return [rank.run_step(step) for step in range(STEPS)]

    return Run(ranks, in_threads(ranks, steps)), found  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("stages", "replicas"), [(2, 2), (3, 2), (2, 4)])
def test_honest_ranks_agree_to_the_last_bit_and_nothing_changes(
    stages: int, replicas: int, precision: str
) -> None:
    job = make_job(precision=precision)
    plan = make_plan(job, stages, (4 // replicas,) * replicas)
    undisturbed = train(job, plan, STEPS)
    for stage in range(stages):
        for replica in range(replicas):
            checkers = tuple(r for r in plan.group(stage) if plan.replica_of(r) != replica)[:2]
            last = plan.micro_batches[replica] - 1
            checks = {1: SpotCheck(1, stage, replica, last, checkers)}
            run, found = checked_run(plan, checks, precision)
            assert found == {(1, c): 0.0 for c in checkers}
            assert run.losses == undisturbed.losses
            for name, value in undisturbed.weights().items():
                assert torch.equal(run.weights()[name], value)


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("flipped", [False, True], ids=["scaled", "a bit"])
def test_a_lie_is_measured_by_who_checks_it(
    stage: int, flipped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(make_job(), 3, (2, 2))
    liar, checker = plan.rank(0, stage), plan.rank(1, stage)
    lying: list[Stage] = []
    forward, backward = Stage.forward, Stage.backward

    def wrong(x: Tensor) -> Tensor:
        if not flipped:
            return x * 1.05
        x = x.clone()
        values = x.view(-1)
        values[values.abs().argmax()] *= -1.0  # the bit of its sign
        return x

    def lying_forward(self: Stage, *given: object) -> Tensor:
        y = forward(self, *given)  # type: ignore[arg-type]
        return wrong(y) if self in lying and not self.is_last else y

    def lying_backward(self: Stage, *given: object) -> Tensor | None:
        gradient = backward(self, *given)  # type: ignore[arg-type]
        return wrong(gradient) if gradient is not None and self in lying else gradient

    ranks, found = make_ranks(make_job(), plan), Found()
    lying.append(ranks[liar].stage)
    monkeypatch.setattr(Stage, "forward", lying_forward)
    monkeypatch.setattr(Stage, "backward", lying_backward)
    check = SpotCheck(0, stage, 0, 1, (checker,))
    for i, rank in enumerate(ranks):

        def check_of(_: int, i: int = i) -> SpotCheck | None:
            return check if i in check.told(plan) else None

        agreement = Noting(rank.context.agreement, i, found)
        rank.context = replace(rank.context, agreement=agreement, check_of=check_of)
    in_threads(ranks, Rank.run_first)
    (error,) = found.values()
    assert error > 0.04
    if not flipped:
        assert error == pytest.approx(0.05, rel=1e-3)


def test_who_is_not_checked_and_checks_nothing_sends_nothing_more() -> None:
    plan = make_plan(make_job(), 2, (2, 2))
    plain, _ = checked_run(plan, {})
    checked, _ = checked_run(plan, {1: SpotCheck(1, 0, 0, 0, (2,))})
    more = [b[1].sent_bytes - a[1].sent_bytes for a, b in zip(plain.results, checked.results, strict=True)]
    boundary = 2 * 8 * 32 * 4
    assert more == [0, 2 * boundary, 0, 0], "the stage behind sends the activation and the gradient on"


def test_the_error_is_relative_and_what_is_no_number_is_none() -> None:
    x = torch.tensor([3.0, 4.0])
    assert relative_error(x, x) == 0.0
    assert relative_error(x * 1.01, x) == pytest.approx(0.01)
    assert relative_error(torch.zeros(2), torch.zeros(2)) == 0.0
    assert isinf(relative_error(x, torch.zeros(2)))
    assert isnan(relative_error(torch.tensor([float("nan"), 1.0]), x))

"""A plan trains the model that one process would: same losses, same weights, whatever the plan.

Where the sums are the same but their order is not (micro-batches and replicas are added one after the
other, the plain loop sums over its batch at once), float32 differs in its last bits: 6e-8 relative an
addition, some hundred additions to a value, twenty steps. Hence 1e-5, of a loss or of a weight tensor's
largest value. What is the same sum in the same order must be the same to the last bit.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from scheduler.job import JobSpec
from tests.worker.pipelines import Run, make_job, make_plan, train, train_plainly

TOLERANCE = 1e-5


@cache
def plainly(family: str) -> tuple[list[float], dict[str, Tensor]]:
    return train_plainly(make_job(family))


def assert_same_training(run: Run, losses: list[float], weights: dict[str, Tensor]) -> None:
    assert run.losses == pytest.approx(losses, rel=TOLERANCE)
    trained = run.weights()
    assert trained.keys() == weights.keys()
    for name, value in trained.items():
        worst = (value - weights[name]).abs().max() / weights[name].abs().max()
        assert worst <= TOLERANCE, f"{name}: {worst:.1e}"


def assert_replicas_agree_bitwise(run: Run) -> None:
    first = run.weights(0)
    for replica in range(1, run.ranks[0].context.plan.n_replicas):
        other = run.weights(replica)
        assert all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("stages", [1, 2, 4])
def test_every_plan_trains_as_one_process_does(
    family: str, stages: int, replicas: int, schedule: str
) -> None:
    job = make_job(family)
    losses, weights = plainly(family)
    assert losses[-1] < 0.9 * losses[0], "the comparison is of a model that learns"
    plan = make_plan(job, stages, (job.micro_batches // replicas,) * replicas, schedule)
    run = train(job, plan)
    assert_same_training(run, losses, weights)
    assert_replicas_agree_bitwise(run)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("shares", [(8,), (2,), (1,), (4, 4), (3, 1)])
def test_micro_batches_of_any_size_train_as_one_process_does(
    family: str, recompute: bool, shares: tuple[int, ...]
) -> None:
    """8 samples in micro-batches of 1, 4, 8, 1 and 2."""
    job = make_job(family)
    run = train(job, make_plan(job, 2, shares, recompute=recompute))
    assert_same_training(run, *plainly(family))
    assert_replicas_agree_bitwise(run)


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize("stages", [1, 2, 4])
def test_recomputation_changes_no_bit(stages: int, schedule: str) -> None:
    job = make_job()
    kept, again = (train(job, make_plan(job, stages, (2, 2), schedule, r), steps=6) for r in (False, True))
    assert again.losses == kept.losses
    assert all(torch.equal(x, kept.weights()[name]) for name, x in again.weights().items())


def test_clipping_was_active_and_the_norm_is_known_to_all() -> None:
    job = make_job()
    run = train(job, make_plan(job, 2, (2, 2)), steps=3)
    norms = [{r.grad_norm for r in step} for step in zip(*run.results, strict=True)]
    assert all(len(n) == 1 for n in norms)
    assert all(n > job.optimizer.clip_norm for step in norms for n in step)


def test_without_clipping() -> None:
    job = make_job("llama")
    job = job.model_copy(
        update={"optimizer": job.optimizer.model_copy(update={"clip_norm": 0.0, "lr": 1e-3})}
    )
    losses, weights = train_plainly(job)
    assert_same_training(train(job, make_plan(job, 2, (2, 2))), losses, weights)


@pytest.mark.parametrize("shares", [(3, 1), (1, 1, 2)])
def test_replicas_of_unequal_shares(shares: tuple[int, ...]) -> None:
    job = make_job()
    run = train(job, make_plan(job, 2, shares))
    assert_same_training(run, *plainly("gpt2"))
    assert_replicas_agree_bitwise(run)


@pytest.mark.parametrize("replicas", [1, 2])
def test_tied_copies_stay_equal_bit_by_bit(replicas: int) -> None:
    job = make_job()
    run = train(job, make_plan(job, 4, (4 // replicas,) * replicas))
    for replica in range(replicas):
        weights = run.weights(replica)
        assert torch.equal(weights["embedding.weight"], weights["head.weight"])


def test_the_same_run_twice_is_the_same_bit_by_bit() -> None:
    job = make_job()
    plan = make_plan(job, 2, (3, 1))
    a, b = train(job, plan), train(job, plan)
    assert a.losses == b.losses
    assert all(torch.equal(x, b.weights()[name]) for name, x in a.weights().items())


def test_where_the_model_is_cut_changes_no_bit() -> None:
    """Same micro-batches in the same order, an untied model, the norm summed layer by layer."""
    job: JobSpec = make_job("llama")
    whole = train(job, make_plan(job, 1, (4,)))
    for schedule in ("gpipe", "1f1b"):
        cut = train(job, make_plan(job, 4, (4,), schedule))
        assert cut.losses == whole.losses
        assert all(torch.equal(x, whole.weights()[name]) for name, x in cut.weights().items())

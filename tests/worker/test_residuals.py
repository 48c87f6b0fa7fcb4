"""Reductions with error feedback: replicas stay equal, and a resumed run owes what the ended one owed."""

from __future__ import annotations

import pytest
import torch

from scheduler.checkpoint_layout import LayerFileInfo, residual_file
from scheduler.plan import Plan
from tests.worker.pipelines import Rank, in_threads, make_job, make_plan, make_ranks, train
from tests.worker.test_compressed import compressed
from worker.checkpoint import file_info, from_bytes, load_state, load_weights, stage_files
from worker.residuals import load_residuals, residual_files
from worker.step import StepResult

REDUCE = "feedback:bits=3,group=32"


def run_steps(ranks: list[Rank], start: int, stop: int) -> list[float]:
    def work(rank: Rank) -> list[StepResult]:
        return [rank.run_step(step) for step in range(start, stop)]

    results = in_threads(ranks, work)
    return [
        sum(r.loss_sum for r in step) / sum(r.tokens for r in step) for step in zip(*results, strict=True)
    ]


def saved(ranks: list[Rank]) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for rank in ranks:
        context = rank.context
        files |= residual_files(context.codecs, context.plan, context.rank)
        if context.replica == 0:
            files |= stage_files(rank.stage, rank.optimizer, context.plan.partition[context.stage][0])
    return files


def resumed(plan: Plan, files: dict[str, bytes], with_residuals: bool = True) -> tuple[list[Rank], int]:
    """Ranks as a checkpoint left them, and how many residuals it had for them."""
    ranks = make_ranks(make_job(), plan)
    loaded = 0
    for rank in ranks:
        context = rank.context
        start = context.plan.partition[context.stage][0]
        for i, layer in enumerate(rank.stage.layers):
            name = f"layer-{start + i:04d}"
            load_weights(layer, from_bytes(files[f"{name}.safetensors"], name), name)
            load_state(rank.optimizer, i, from_bytes(files[f"{name}.optimizer.safetensors"], name), name)
        if with_residuals:
            loaded += load_residuals(
                context.codecs,
                context.plan,
                context.rank,
                lambda name: from_bytes(files[name], name) if name in files else None,
            )
    return ranks, loaded


@pytest.mark.parametrize("reduce", [REDUCE, "topk:per_mille=100", "topk:per_mille=100,bits=4"])
def test_replicas_hold_the_same_bits_and_the_model_learns(reduce: str) -> None:
    job = make_job()
    run = train(job, compressed(make_plan(job, 2, (2, 2)), reduce=reduce))
    assert all(torch.equal(value, run.weights(1)[name]) for name, value in run.weights(0).items())
    assert run.losses[-1] < run.losses[0] - 0.2


def test_a_resumed_run_goes_on_bit_by_bit_where_it_ended() -> None:
    job = make_job()
    plan = compressed(make_plan(job, 2, (2, 2)), reduce=REDUCE)
    ranks = make_ranks(job, plan)
    run_steps(ranks, 0, 4)
    files = saved(ranks)
    expected = run_steps(ranks, 4, 8)
    again, loaded = resumed(plan, files)
    # Of 5 layers in 2 replicas: a shard to the other replica, the own sum to all, and both ends' tied one.
    assert loaded == 2 * (5 + 5 + 2)
    assert run_steps(again, 4, 8) == expected
    without, _ = resumed(plan, files, with_residuals=False)
    assert run_steps(without, 4, 8) != expected


def test_residuals_of_another_number_of_replicas_are_left_out() -> None:
    job = make_job()
    ranks = make_ranks(job, compressed(make_plan(job, 2, (2, 2)), reduce=REDUCE))
    run_steps(ranks, 0, 2)
    again, loaded = resumed(compressed(make_plan(job, 2, (1, 1, 1, 1)), reduce=REDUCE), saved(ranks))
    assert loaded == 0
    assert len(run_steps(again, 2, 3)) == 1


def test_a_residual_s_file_may_be_in_a_checkpoint() -> None:
    name = residual_file(3, 12)
    assert name == "layer-0003.residual-12.safetensors"
    assert file_info(name, b"x") == LayerFileInfo(name, file_info(name, b"x").sha256, 1)

"""Replicas that share every sequence train the model that one process would."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from scheduler.analytic import device_profile, job_profile
from scheduler.cost import durations, stage_memory
from scheduler.job import ModelSpec
from scheduler.plan import Plan, PlanError
from scheduler.topology import Device, Topology
from tests.scheduler.test_split_choice import a_job_of
from tests.worker.pipelines import (
    VOCAB,
    Rank,
    in_threads,
    make_job,
    make_plan,
    make_ranks,
    sequence_plan,
    tokens_of,
    train,
    train_plainly,
)
from tests.worker.test_compressed import compressed
from tests.worker.test_equality import assert_replicas_agree_bitwise, assert_same_training, plainly
from tests.worker.test_measured_bytes import n_bytes_of
from worker.lone_shard import shard_length
from worker.step import run_eval
from worker.transport import TransportAborted, TransportTimeout


def test_the_plan_counts_every_sample_once() -> None:
    plan = sequence_plan(make_job(), 2, 3)
    assert (plan.samples, plan.n_micro_batches, plan.batch_shares, plan.sequence_shards) == (8, 4, 1, 3)
    assert [plan.first_micro_batch(r) for r in range(3)] == [0, 0, 0]
    assert plan.shard_bounds(8) == ((0, 2), (2, 5), (5, 8))
    assert make_plan(make_job(), 2, (2, 2)).shard_bounds(8) == ((0, 8),)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize("shards", [1, 2, 3])
@pytest.mark.parametrize("stages", [1, 2])
def test_sequence_shards_train_as_one_process_does(
    family: str, schedule: str, shards: int, stages: int
) -> None:
    """8 positions: 4 and 4; 2, 3 and 3."""
    job = make_job(family)
    run = train(job, sequence_plan(job, stages, shards, schedule))
    assert_same_training(run, *plainly(family))
    assert_replicas_agree_bitwise(run)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("sizes", [(5, 2, 1), (1, 6, 1), (6, 2)])
@pytest.mark.parametrize("stages", [1, 2])
def test_unequal_shards_train_as_one_process_does(family: str, sizes: tuple[int, ...], stages: int) -> None:
    job = make_job(family)
    run = train(job, sequence_plan(job, stages, len(sizes), sizes=sizes))
    assert_same_training(run, *plainly(family))
    assert_replicas_agree_bitwise(run)


def test_shards_of_another_length_than_the_sequences_are_refused() -> None:
    plan = sequence_plan(make_job(), 1, 2, sizes=(5, 2))
    assert plan.shard_bounds(7) == ((0, 5), (5, 7))
    with pytest.raises(PlanError, match="found shards of 5, 2 positions for sequences of 8; required shards"):
        plan.shard_bounds(8)


@pytest.mark.parametrize("extra", [1, 3])
def test_more_in_flight_changes_no_bit(extra: int) -> None:
    """Earlier shards go further ahead: their orders differ, and nobody waits for ever."""
    job = make_job("llama")
    plan = sequence_plan(job, 2, 3)
    assert plan.actions(0) != replace(plan, warmup_extra=extra).actions(0)
    plain, deep = (train(job, replace(plan, warmup_extra=e), steps=6) for e in (0, extra))
    assert deep.losses == plain.losses


def test_a_window_trains_as_one_process_does() -> None:
    model = ModelSpec(
        family="llama",
        layers=(("attention window=3", "mlp"), ("attention", "attention window=5", "mlp")),
        hidden=32,
        heads=4,
        kv_heads=2,
        vocab=VOCAB,
        tied=False,
    )
    job = make_job("llama", model=model, steps=8)
    run = train(job, sequence_plan(job, 2, 4))
    assert_same_training(run, *train_plainly(job))


@pytest.mark.parametrize("stages", [1, 2])
def test_recomputation_asks_for_the_keys_again_and_changes_no_bit(stages: int) -> None:
    job = make_job()
    kept, again = (train(job, sequence_plan(job, stages, 2, recompute=r), steps=6) for r in (False, True))
    assert again.losses == kept.losses
    assert all(torch.equal(x, kept.weights()[name]) for name, x in again.weights().items())
    sent = [
        sum(x.sent_bytes for step in run.results for r in step for x in r.links if x.kind == "keys")
        for run in (kept, again)
    ]
    assert sent[1] == 2 * sent[0] > 0


def test_16_bit_shards_stay_near_the_whole() -> None:
    job = make_job("llama", precision="bf16", steps=10)
    whole = train(job, make_plan(job, 2, (4,)))
    shards = train(job, sequence_plan(job, 2, 2))
    assert shards.losses == pytest.approx(whole.losses, rel=0.02)
    assert_replicas_agree_bitwise(shards)


def test_compressed_boundaries_and_shards_go_together() -> None:
    """Samples come again: both ends of every replica's link remember their own positions of them."""
    job = make_job("llama", steps=12)
    plan = compressed(
        sequence_plan(job, 2, 2), activation="acsgd:bits=8,group=32", gradient="kbit:bits=8,group=32"
    )
    ranks = make_ranks(job, plan)
    for rank in ranks:
        rank.n_samples = 16
    results = in_threads(ranks, lambda rank: [rank.run_step(step) for step in range(12)])
    plain = make_ranks(job, replace(plan, codecs=make_plan(job, 2, (4,)).codecs))
    for rank in plain:
        rank.n_samples = 16
    expected = in_threads(plain, lambda rank: [rank.run_step(step) for step in range(12)])
    for step in range(12):
        ours, theirs = (sum(r[step].loss_sum for r in run) for run in (results, expected))
        assert ours == pytest.approx(theirs, rel=0.01)


def test_every_replica_evaluates_its_positions_of_every_sample() -> None:
    job = make_job()
    tokens = tokens_of(job, 99)[:5]

    def evaluated(plan: Plan) -> tuple[float, int]:
        def work(rank: Rank) -> tuple[float, int]:
            def batch(ids: object) -> Tensor:
                return tokens[list(ids)]  # type: ignore[call-overload]

            return run_eval(rank.context, rank.stage, 3, 5, batch, time.monotonic)

        found = in_threads(make_ranks(job, plan), work)
        return sum(loss for loss, _ in found), sum(n for _, n in found)

    loss, n = evaluated(sequence_plan(job, 2, 3))
    expected, n_expected = evaluated(make_plan(job, 1, (4,)))
    assert n == n_expected == 5 * job.sequence_length
    assert loss == pytest.approx(expected, rel=1e-5)


def test_spans_of_waiting_part_those_of_computing() -> None:
    job = make_job()
    ranks = make_ranks(job, sequence_plan(job, 2, 2))
    for rank, result in zip(ranks, in_threads(ranks, lambda r: r.run_step(0)), strict=True):
        own = sorted((s for s in result.spans if s.kind != "send"), key=lambda s: (s.start_s, s.end_s))
        for a, b in pairwise(own):
            assert a.end_s <= b.start_s + 1e-9, f"rank {rank.context.rank}: {a} and {b}"
        kinds = {(s.kind, s.mb) for s in own}
        assert {(kind, mb) for kind in ("forward", "backward") for mb in range(4)} <= kinds


def test_a_shard_that_does_not_come_is_named_by_those_that_wait() -> None:
    job = make_job()
    ranks = make_ranks(job, sequence_plan(job, 1, 2), timeout_s=0.2)
    with pytest.raises(TransportTimeout, match=r"waited 0.2 s for keys .* from rank 0"):
        ranks[1].run_step(0)
    assert ranks[1].stage.in_flight == 0
    assert all(p.grad is None for layer in ranks[1].stage.owned for p in layer)


@pytest.mark.parametrize("waiting", [1, 0], ids=["keys", "gradients"])
def test_a_wait_for_another_shard_can_be_aborted(waiting: int) -> None:
    job = make_job()
    rank = make_ranks(job, sequence_plan(job, 1, 2))[waiting]
    errors: list[str] = []

    def work() -> None:
        try:
            rank.run_step(0)
        except TransportAborted as e:
            errors.append(str(e))

    thread = threading.Thread(target=work)
    thread.start()
    while rank.context.waiting.rank is None:
        time.sleep(0.001)
    assert rank.context.waiting.rank == 1 - waiting
    rank.context.transport.abort("the other shard is lost")
    thread.join(20.0)
    assert errors == ["the other shard is lost"]
    assert rank.stage.in_flight == 0


def test_keys_travel_along_the_row_of_shards_and_their_gradients_back() -> None:
    job = make_job("llama")
    ranks = make_ranks(job, sequence_plan(job, 1, 3))
    results = in_threads(ranks, lambda rank: rank.run_step(0))
    sent = {
        (x.kind, rank, x.peer): x.sent_bytes
        for rank, r in enumerate(results)
        for x in r.links
        if x.kind in ("keys", "owed") and x.sent_bytes
    }
    a_position = 3 * 2 * 2 * 8 * 4 * 8  # layers, keys and values, heads, width, float32, samples
    assert sent == {
        ("keys", 0, 1): 2 * a_position,
        ("keys", 1, 2): (2 + 3) * a_position,
        ("owed", 1, 0): 2 * a_position,
        ("owed", 2, 1): (2 + 3) * a_position,
    }


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("sizes", [(), (3, 1, 2, 2)], ids=["equal", "unequal"])
def test_the_price_of_sharing_sequences_is_what_workers_send(
    family: str, recompute: bool, sizes: tuple[int, ...]
) -> None:
    """Bytes of every kind to every peer, to the byte."""
    model = make_job(family).model.model_copy(
        update={
            "layers": (
                ("attention window=3", "mlp"),
                ("attention", "mlp"),
                ("attention", "attention window=2", "mlp"),
            )
        }
    )
    job = make_job(family, model=model)
    plan = sequence_plan(job, 2, 4, recompute=recompute, sizes=sizes)
    profile = job_profile(job)
    devices = [device_profile(profile, name, 1e12) for name in plan.devices]
    n = plan.n_ranks
    network = Topology(
        tuple(Device(name) for name in plan.devices), np.full((n, n), 0.01), np.full((n, n), 1e9)
    )
    costs = durations(plan, profile, devices, network)
    assert costs.rows is not None
    ranks = make_ranks(job, plan)
    for rank, found in zip(ranks, in_threads(ranks, n_bytes_of), strict=True):
        me, stage, replica = rank.context.rank, rank.context.stage, rank.context.replica
        expected: dict[tuple[str, int], int] = {}
        if not rank.stage.is_last:
            expected["activation", me + 1] = 4 * costs.activation_bytes[me]
        if not rank.stage.is_first:
            expected["gradient", me - 1] = 4 * costs.gradient_bytes[me]
        if replica + 1 < plan.n_replicas:
            times = 4 * (2 if recompute else 1)
            expected["keys", me + 2] = times * costs.rows.handed_on_bytes(stage, replica)
        if replica > 0:
            expected["owed", me - 2] = 4 * costs.rows.handed_on_bytes(stage, replica - 1)
        kinds = {kind for kind, _ in expected}
        assert {k: v for k, v in found["links"].items() if k[0] in kinds} == expected


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("sizes", [(), (24, 20, 12, 8)], ids=["equal", "unequal"])
def test_a_shard_holds_what_its_profile_says(family: str, sizes: tuple[int, ...]) -> None:
    """Its part, and the keys that it was sent: the last shard most. Rotated keys and values are held once,
    where the closed form of whole sequences has the product that they are views of, too."""
    job = make_job(family, sequence_length=64)
    job = job.model_copy(update={"model": job.model.model_copy(update={"max_positions": 64})})
    plan = sequence_plan(job, 2, 4, sizes=sizes)
    shard = job_profile(job).sharded(4, sizes)
    ranks = make_ranks(job, plan)
    for rank, found in zip(ranks, in_threads(ranks, n_bytes_of), strict=True):
        own = shard.of_replica(rank.context.replica)
        said = stage_memory(own, *plan.partition[rank.context.stage]).saved_bytes
        (saved,) = found["saved"]
        assert (1.0 if family == "gpt2" else 0.9) * said <= saved <= said + 4


@pytest.mark.parametrize(
    ("parallelism", "length"),
    [
        ("auto", 512),
        ("{stages: 2, replicas: 3}", 512),
        ("{stages: 2, replicas: 3, split: sequence}", 171),
        ("{stages: 1, replicas: 4, split: auto}", 128),
        ("{split: auto}", 128),
    ],
)
def test_layers_are_timed_with_what_fits_however_replicas_share(parallelism: str, length: int) -> None:
    assert shard_length(a_job_of(parallelism)) == length

"""Steps over compressed links: bytes, the same bits where they must be, errors that name the tensor."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from compression.spec import codec_spec
from scheduler.plan import Plan
from scheduler.plan_codecs import PlanCodecs, same_everywhere
from tests.worker.pipelines import Rank, in_threads, make_job, make_plan, make_ranks, train
from worker.step import Diverged, StepResult

KBIT8 = "kbit:group=32"
KBIT4 = "kbit:bits=4,group=32"


def compressed(plan: Plan, activation: str = "", gradient: str = "", reduce: str = "") -> Plan:
    codecs = same_everywhere(plan.n_stages, plan.n_replicas, activation, gradient, reduce)
    return replace(plan, codecs=codecs)


def test_eight_bits_change_little_and_bring_the_promised_bytes() -> None:
    job = make_job()
    plan = make_plan(job, 3, (4,))
    plain = train(job, plan)
    run = train(job, compressed(plan, KBIT8, KBIT8 + ",rounding=stochastic"))
    assert run.losses != plain.losses
    torch.testing.assert_close(torch.tensor(run.losses), torch.tensor(plain.losses), rtol=0.01, atol=0)
    each = codec_spec(KBIT8).wire_bytes((plan.micro_batch, job.sequence_length, job.shape.hidden), 4)
    for use in run.results[1][0].links:
        if use.kind in ("activation", "gradient") and use.sent_bytes:
            assert use.sent_bytes == 4 * each
            assert use.ratio == pytest.approx(32 / 8.5)


def test_fewer_bits_are_further_off() -> None:
    job = make_job()
    plan = make_plan(job, 3, (4,))
    plain = torch.tensor(train(job, plan).losses)
    off = [
        float(
            (torch.tensor(train(job, compressed(plan, f"kbit:bits={bits},group=32")).losses) - plain)
            .abs()
            .max()
        )
        for bits in (8, 4, 2)
    ]
    assert off[0] < off[1] < off[2]


@pytest.mark.parametrize("reduce", [KBIT8, KBIT4 + ",rounding=stochastic", "fp16"])
def test_replicas_and_tied_copies_hold_the_same_bits_whatever_the_sum_lost(reduce: str) -> None:
    job = make_job()  # gpt2: embedding and head are tied, and in different stages
    run = train(job, compressed(make_plan(job, 2, (2, 2)), reduce=reduce), steps=4)
    first, second = run.weights(0), run.weights(1)
    assert all(torch.equal(first[name], second[name]) for name in first)
    embedding, head = run.ranks[0].stage.tied, run.ranks[1].stage.tied
    assert embedding is not None
    assert head is not None
    assert torch.equal(embedding, head)
    plain = train(job, make_plan(job, 2, (2, 2)), steps=4)
    assert not all(torch.equal(first[name], plain.weights(0)[name]) for name in first)


def measured(rank: Rank) -> StepResult:
    rank.measure_errors = True
    return rank.run_step(0)


def test_what_codecs_change_is_measured_when_asked_for() -> None:
    job = make_job()
    plan = compressed(make_plan(job, 2, (2, 2)), KBIT4, KBIT8, KBIT8)
    results = in_threads(make_ranks(job, plan), measured)
    errors = {use.kind: use.relative_error for use in results[0].links if use.relative_error}
    assert 0.05 < errors["activation"] < 0.15
    assert 0.0 < errors["reduced"] < 0.02
    assert 0.0 < errors["tied"] < 0.02
    assert not [use.kind for use in results[0].links if use.codec == "identity"]
    assert all(use.relative_error == 0 for use in in_threads(make_ranks(job, plan), Rank.run_first)[0].links)


def test_each_replica_s_links_have_the_codecs_that_the_plan_names_for_them() -> None:
    job = make_job()
    codecs = PlanCodecs((("identity",), (KBIT4,)), ((KBIT8,), ("identity",)), ("identity", KBIT8))
    plan = replace(make_plan(job, 2, (2, 2)), codecs=codecs)
    run = train(job, plan, steps=1)
    used = {
        (use.kind, use.rank, use.peer): use.codec
        for results in run.results
        for use in results[0].links
        if use.kind in ("activation", "gradient", "shard") and use.sent_bytes
    }
    assert used == {
        ("activation", 0, 1): "identity",
        ("activation", 2, 3): KBIT4,
        ("gradient", 1, 0): KBIT8,
        ("gradient", 3, 2): "identity",
        ("shard", 0, 2): "identity",
        ("shard", 2, 0): "identity",
        ("shard", 1, 3): KBIT8,
        ("shard", 3, 1): KBIT8,
    }
    first, second = run.weights(0), run.weights(1)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_value_that_is_no_number_names_stage_layer_and_micro_batch() -> None:
    job = make_job()
    ranks = make_ranks(job, compressed(make_plan(job, 3, (4,)), KBIT4))
    with torch.no_grad():
        next(ranks[1].stage.layers[0].parameters()).fill_(float("nan"))
    with pytest.raises(
        Diverged,
        match=r"step 0, stage 1 \(rank 1\), activation behind layer 2 of micro-batch 0 to rank 2: found"
        r" a value that is no number",
    ):
        in_threads(ranks, Rank.run_first)


def test_two_ends_that_were_told_different_codecs_notice() -> None:
    job = make_job()
    plan = make_plan(job, 2, (4,))
    ranks = make_ranks(job, compressed(plan, KBIT4))
    ranks[1].context.codecs.plan = compressed(plan, KBIT8)
    with pytest.raises(
        Exception, match="found a payload of codec 'kbit:bits=4,group=32'; required 'kbit:group=32'"
    ):
        in_threads(ranks, Rank.run_first)

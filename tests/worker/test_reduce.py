"""The sharded exchange gives every replica the same bits: each value's sum in replica order."""

from __future__ import annotations

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from scheduler.sequence import shard_bounds
from tests.worker.pipelines import Rank, in_threads, make_job, make_plan, make_ranks
from worker.peers import Peers
from worker.recorder import Recorder
from worker.reduce import GradientReduction
from worker.transport import FrameKey, TransportTimeout


@given(n=st.integers(0, 1000), shards=st.integers(1, 17))
def test_shards_are_all_of_it_and_of_one_size(n: int, shards: int) -> None:
    bounds = shard_bounds(n, shards)
    assert [i for start, stop in bounds for i in range(start, stop)] == list(range(n))
    sizes = {stop - start for start, stop in bounds}
    assert max(sizes) - min(sizes) <= 1


def gradients(replica: int, shapes: list[list[tuple[int, ...]]], seed: int) -> list[list[torch.Tensor]]:
    rng = torch.Generator().manual_seed(seed * 100 + replica)
    return [[torch.randn(shape, generator=rng) * 10**replica for shape in layer] for layer in shapes]


def reduction(rank: Rank, owned: list[list[nn.Parameter]]) -> GradientReduction:
    context = rank.context
    recorder = Recorder(context.rank, time.monotonic)
    peers = Peers(context, 0, recorder)
    return GradientReduction(peers, recorder, context.rank, context.plan.group(0), owned, first_layer=0)


def parameters(values: list[list[torch.Tensor]]) -> list[list[nn.Parameter]]:
    owned = [[nn.Parameter(torch.zeros_like(g)) for g in layer] for layer in values]
    for layer, grads in zip(owned, values, strict=True):
        for p, g in zip(layer, grads, strict=True):
            p.grad = g.clone()
    return owned


@settings(max_examples=15, deadline=None)
@given(
    replicas=st.integers(2, 4),
    shapes=st.lists(
        st.lists(st.sampled_from([(1,), (3,), (2, 5), (7, 3)]), min_size=1, max_size=3),
        min_size=1,
        max_size=3,
    ),
    seed=st.integers(0, 1000),
)
def test_every_replica_holds_the_sum_in_replica_order(
    replicas: int, shapes: list[list[tuple[int, ...]]], seed: int
) -> None:
    job = make_job()
    job = job.model_copy(update={"global_batch": 2 * replicas})
    ranks = make_ranks(job, make_plan(job, 1, (1,) * replicas))
    given_ = [gradients(r, shapes, seed) for r in range(replicas)]

    def reduce(rank: Rank) -> list[list[nn.Parameter]]:
        owned = parameters(given_[rank.context.rank])
        it = reduction(rank, owned)
        for layer in reversed(range(len(shapes))):
            it.start(layer)
        it.finish()
        return owned

    for owned in in_threads(ranks, reduce):
        for layer, ps in enumerate(owned):
            for i, p in enumerate(ps):
                total = given_[0][layer][i].clone()
                for r in range(1, replicas):
                    total += given_[r][layer][i]
                assert p.grad is not None
                assert torch.equal(p.grad, total)


def test_an_exchange_starts_with_its_layer_and_sums_go_on_before_the_end() -> None:
    job = make_job()
    ranks = make_ranks(job, make_plan(job, 1, (1, 1)))
    values = [gradients(r, [[(4,)], [(6,)]], 0) for r in range(2)]
    it = [reduction(rank, parameters(v)) for rank, v in zip(ranks, values, strict=True)]
    there = [rank.context.transport.ready for rank in ranks]
    it[0].start(1)
    assert there[1](FrameKey("shard", 0, 0, src=0, tag=1)), "sent while layer 0 is still computed"
    assert not there[0](FrameKey("reduced", 0, 0, src=1, tag=1))
    it[1].start(1)  # both versions of replica 1's shard are there now
    assert there[0](FrameKey("reduced", 0, 0, src=1, tag=1)), "added as soon as it is complete"
    assert not there[1](FrameKey("reduced", 0, 0, src=0, tag=1)), "replica 0 has not looked since"
    it[0].start(0)
    assert there[1](FrameKey("reduced", 0, 0, src=0, tag=1))


def test_a_replica_that_does_not_come_is_named() -> None:
    job = make_job()
    ranks = make_ranks(job, make_plan(job, 1, (1, 1)), timeout_s=0.01)
    it = reduction(ranks[0], parameters(gradients(0, [[(4,)]], 0)))
    it.start(0)
    with pytest.raises(TransportTimeout, match=r"shard.*step 0.*rank 1"):
        it.finish()

"""The engine against closed forms: bubbles, links, shared cores, reductions."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.engine import Durations, EngineError, FreeNetwork, TopologyNetwork, replay
from scheduler.plan import Plan
from scheduler.timeline import Span, Timeline, bubble_fraction, critical_path, use_by_rank
from scheduler.topology import Device, Topology

ALPHA_S, BETA_BPS = 0.5, 100.0


def a_plan(
    n_stages: int, n_replicas: int, n_micro_batches: int, schedule: str = "1f1b", extra: int = 0
) -> Plan:
    names = [f"d{i}" for i in range(n_stages * n_replicas)]
    return Plan(
        version=1,
        placement=tuple(tuple(names[r * n_stages : (r + 1) * n_stages]) for r in range(n_replicas)),
        partition=tuple((s, s + 1) for s in range(n_stages)),
        micro_batches=(n_micro_batches,) * n_replicas,
        schedule=schedule,
        warmup_extra=extra,
    )


def equal(
    plan: Plan, f: float, b: float, n_bytes: int = 0, reduce: int = 0, optimizer: float = 0
) -> Durations:
    n, s = plan.n_ranks, plan.n_stages
    wire = (n_bytes,) * n
    return Durations((f,) * n, (b,) * n, (optimizer,) * n, wire, wire, (reduce,) * s)


def links(n: int, latency_s: float = ALPHA_S, bandwidth_Bps: float = BETA_BPS) -> TopologyNetwork:
    devices = tuple(Device(f"d{i}") for i in range(n))
    return TopologyNetwork(Topology(devices, np.full((n, n), latency_s), np.full((n, n), bandwidth_Bps)))


def of_kind(t: Timeline, kind: str, rank: int | None = None) -> list[Span]:
    return [s for s in t.spans if s.kind == kind and rank in (None, s.rank)]


@given(
    schedule=st.sampled_from(["gpipe", "1f1b"]),
    n_stages=st.integers(1, 8),
    n_micro_batches=st.integers(1, 10),
    extra=st.integers(0, 3),
    f=st.integers(1, 64),
    b=st.integers(1, 64),
)
def test_free_links_give_the_closed_form(
    schedule: str, n_stages: int, n_micro_batches: int, extra: int, f: int, b: int
) -> None:
    plan = a_plan(n_stages, 1, n_micro_batches, schedule, extra)
    t = replay(plan, equal(plan, f / 64, b / 64), FreeNetwork())
    slots = n_micro_batches + n_stages - 1
    assert t.duration_s == slots * (f + b) / 64  # exact: all are multiples of 1/64
    assert bubble_fraction(t) == pytest.approx((n_stages - 1) / slots)
    path = critical_path(t)
    assert sum(s.duration_s for s in path) == pytest.approx(t.duration_s)


def test_one_transfer_takes_latency_and_serialisation() -> None:
    plan = a_plan(2, 1, 1)
    t = replay(plan, equal(plan, 1, 2, n_bytes=300), links(2))
    there, back = of_kind(t, "send")
    assert (there.start_s, there.end_s) == (1, 1 + ALPHA_S + 3)
    assert of_kind(t, "wait", 1)[0].end_s == there.end_s
    assert (back.start_s, back.end_s) == (there.end_s + 3, there.end_s + 3 + ALPHA_S + 3)
    norm_s = ALPHA_S + 8 / BETA_BPS
    assert t.duration_s == pytest.approx(back.end_s + 2 + norm_s)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_equal_transfers_queue_on_a_link(n: int) -> None:
    """All are handed over while the first is under way: the last arrives n serialisations later."""
    plan = a_plan(2, 1, n, "gpipe")
    t = replay(plan, equal(plan, 0, 0, n_bytes=200), links(2))
    there = of_kind(t, "send", 0)
    assert [s.end_s for s in there] == [(i + 1) * 2 + ALPHA_S for i in range(n)]
    assert all(s.start_s == 0 for s in there)


def test_compute_never_waits_for_a_send() -> None:
    plan = a_plan(2, 1, 4, "gpipe")
    t = replay(plan, equal(plan, 1, 1, n_bytes=10_000), links(2))
    assert [s.start_s for s in of_kind(t, "forward", 0)] == [0, 1, 2, 3]


def test_ranks_of_a_host_share_its_cores() -> None:
    """Four ranks, each its own replica, on two cores: everything takes twice as long."""
    plan = a_plan(1, 4, 3)
    alone = equal(plan, 1, 2, optimizer=0.5)
    shared = replace(alone, shared_cores=(((0, 1, 2, 3), 2),))
    assert replay(plan, alone, FreeNetwork()).duration_s == 9.5
    assert replay(plan, shared, FreeNetwork()).duration_s == pytest.approx(19)
    enough = replace(alone, shared_cores=(((0, 1, 2, 3), 4),))
    assert replay(plan, enough, FreeNetwork()).duration_s == pytest.approx(9.5)


def test_sharing_ends_when_a_neighbour_is_done() -> None:
    """One core, works of 1 and 3 s begun together: the first ends at 2, the second at 4."""
    plan = a_plan(1, 2, 1)
    d = Durations((1, 3), (0, 0), (0, 0), (0, 0), (0, 0), (0,), shared_cores=(((0, 1), 1),))
    ends = [s.end_s for s in sorted(of_kind(replay(plan, d, FreeNetwork()), "forward"), key=lambda s: s.rank)]
    assert ends == pytest.approx([2, 4])


@given(
    seconds=st.lists(st.floats(0, 10), min_size=1, max_size=6),
    cores=st.integers(1, 6),
)
def test_shared_cores_do_exactly_the_work_there_is(seconds: list[float], cores: int) -> None:
    n = len(seconds)
    plan = a_plan(1, n, 1)
    zero = (0.0,) * n
    d = Durations(
        tuple(seconds), zero, zero, (0,) * n, (0,) * n, (0,), shared_cores=((tuple(range(n)), cores),)
    )
    duration_s = replay(plan, d, FreeNetwork()).duration_s
    assert duration_s >= max(max(seconds), sum(seconds) / cores) - 1e-9
    assert duration_s <= max(seconds) + sum(seconds) / cores + 1e-9


@pytest.mark.parametrize("n_replicas", [1, 2, 3, 4])
def test_reduction_costs_the_sharded_formula(n_replicas: int) -> None:
    plan = a_plan(1, n_replicas, 1)
    t = replay(plan, equal(plan, 1, 1, reduce=1200), links(n_replicas))
    peers = n_replicas - 1
    assert t.duration_s == pytest.approx(2 + peers * 2 * (ALPHA_S + 1200 / (n_replicas * BETA_BPS)))
    assert len(of_kind(t, "reduce")) == (n_replicas if peers else 0)


def test_reduction_waits_for_the_last_replica() -> None:
    plan = a_plan(1, 2, 1)
    d = Durations((1, 5), (1, 1), (0, 0), (0, 0), (0, 0), (200,))
    t = replay(plan, d, links(2))
    assert {(s.rank, s.start_s) for s in of_kind(t, "reduce")} == {(0, 6), (1, 6)}
    assert [(s.rank, s.start_s, s.end_s, s.peer) for s in of_kind(t, "wait")] == [(0, 2, 6, 1)]
    assert [(s.kind, s.rank) for s in critical_path(t)][:2] == [("forward", 1), ("backward", 1)]


def test_a_tied_embedding_is_swapped_by_first_and_last_stage() -> None:
    plan = a_plan(3, 1, 1)
    d = equal(plan, 1, 1, optimizer=1)
    base_s = replay(plan, d, links(3)).duration_s
    t = replay(plan, replace(d, tied_bytes=400), links(3))
    swaps = of_kind(t, "reduce")
    assert [(s.rank, s.peer, s.n_bytes) for s in swaps] == [(0, 2, 400), (2, 0, 400)]
    assert t.duration_s == pytest.approx(base_s + ALPHA_S + 4)
    one_stage = a_plan(1, 1, 1)
    assert (
        of_kind(replay(one_stage, replace(equal(one_stage, 1, 1), tied_bytes=400), links(1)), "reduce") == []
    )


def test_the_optimizer_waits_for_every_stage_s_norm() -> None:
    plan = a_plan(2, 1, 1)
    t = replay(plan, equal(plan, 1, 1, optimizer=2), links(2))
    last_backward_s = max(s.end_s for s in of_kind(t, "backward"))
    starts = [s.start_s for s in of_kind(t, "optimizer")]
    assert starts == pytest.approx([last_backward_s + ALPHA_S + 8 / BETA_BPS] * 2)


@given(
    n_stages=st.integers(1, 5),
    n_replicas=st.integers(1, 3),
    n_micro_batches=st.integers(1, 6),
    n_bytes=st.integers(0, 400),
    seconds=st.integers(1, 9),
)
def test_the_critical_path_accounts_for_all_of_the_step_but_the_norm(
    n_stages: int, n_replicas: int, n_micro_batches: int, n_bytes: int, seconds: int
) -> None:
    plan = a_plan(n_stages, n_replicas, n_micro_batches)
    d = equal(plan, seconds / 8, seconds / 4, n_bytes=n_bytes, reduce=64, optimizer=0.5)
    t = replay(plan, d, links(plan.n_ranks))
    norm_s = ALPHA_S + 8 / BETA_BPS if n_stages > 1 else 0
    path = critical_path(t)
    assert sum(s.duration_s for s in path) == pytest.approx(t.duration_s - norm_s)
    assert all(a.end_s <= b.start_s + 1e-6 for a, b in pairwise(path))


def test_use_accounts_for_all_of_the_step() -> None:
    plan = a_plan(3, 2, 5)
    t = replay(plan, equal(plan, 1, 2, n_bytes=70, reduce=500, optimizer=1), links(6))
    for use in use_by_rank(t):
        assert use.busy_s == pytest.approx(5 * 3 + 1)
        assert use.busy_s + use.wait_s + use.reduce_s + use.idle_s == pytest.approx(t.duration_s)


def test_the_same_arguments_give_the_same_timeline() -> None:
    plan = a_plan(4, 2, 6)
    d = replace(
        equal(plan, 0.3, 0.7, n_bytes=33, reduce=77, optimizer=0.1), shared_cores=((tuple(range(8)), 3),)
    )
    assert replay(plan, d, links(8)) == replay(plan, d, links(8))


def test_large_plans_replay_whole() -> None:
    plan = a_plan(64, 1, 64)
    t = replay(plan, equal(plan, 1, 2, n_bytes=10), links(64, 0.01))
    assert len(of_kind(t, "forward")) == len(of_kind(t, "backward")) == 64 * 64
    assert t.duration_s >= (64 + 63) * 3


def test_durations_that_do_not_fit_say_what_is_required() -> None:
    plan = a_plan(2, 2, 1)
    with pytest.raises(EngineError, match="forward_s: found 1 values, required 4 for 2 stages x 2 replicas"):
        replay(plan, replace(equal(plan, 1, 1), forward_s=(1.0,)), FreeNetwork())
    with pytest.raises(EngineError, match=r"backward_s\[0\]: found nan"):
        equal(plan, 1, float("nan"))


class _LosesGradients(Plan):
    def actions(self, rank: int):  # type: ignore[no-untyped-def]
        return tuple(a for a in super().actions(rank) if getattr(a, "kind", "") != "gradient" or rank == 0)


def test_a_step_that_never_ends_is_an_error() -> None:
    plan = a_plan(2, 1, 1)
    broken = _LosesGradients(1, plan.placement, plan.partition, plan.micro_batches, plan.schedule)
    with pytest.raises(EngineError, match=r"never ends: rank 0 at Recv\(kind='gradient', mb=0, src=1\)"):
        replay(broken, equal(plan, 1, 1), FreeNetwork())


def test_encoding_and_decoding_run_beside_the_compute_and_one_after_the_other() -> None:
    # Two stages, three micro-batches under gpipe: forwards end at 1, 2, 3; 2 s to encode each, 4 s to decode.
    plan = a_plan(2, 1, 3, "gpipe")
    d = replace(equal(plan, 1, 1, n_bytes=100), activation_codec_s=((2.0, 4.0), (0.0, 0.0)))
    t = replay(plan, d, links(2, latency_s=0.5, bandwidth_Bps=100.0))
    assert [(s.start_s, s.end_s) for s in of_kind(t, "encode", 0)] == [(1, 3), (3, 5), (5, 7)]
    assert [(s.start_s, s.end_s) for s in of_kind(t, "send", 0)] == [(3, 4.5), (5, 6.5), (7, 8.5)]
    assert [(s.start_s, s.end_s) for s in of_kind(t, "decode", 1)] == [(4.5, 8.5), (8.5, 12.5), (12.5, 16.5)]
    assert [s.end_s for s in of_kind(t, "forward", 0)] == [1, 2, 3]
    assert [s.start_s for s in of_kind(t, "forward", 1)] == [8.5, 12.5, 16.5]
    assert not of_kind(t, "encode", 1)  # gradients go as they are


def test_a_gradient_exchange_codes_each_shard_and_the_sum_once() -> None:
    # Three replicas: shards of 100 bytes take 1 + ALPHA_S; a third of 6 s to encode, of 3 s to decode.
    plan = a_plan(1, 3, 1)
    plain = replay(plan, equal(plan, 1, 1, reduce=300), links(3))
    d = replace(equal(plan, 1, 1, reduce=300), reduce_codec_s=((6.0, 3.0),) * 3)
    coded = replay(plan, d, links(3))
    first, second = 2 * (2 + 1), 2 + 2 * 1
    assert of_kind(plain, "reduce", 0)[0].duration_s == pytest.approx(4 * (1 + ALPHA_S))
    assert of_kind(coded, "reduce", 0)[0].duration_s == pytest.approx(4 * (1 + ALPHA_S) + first + second)

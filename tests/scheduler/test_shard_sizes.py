"""Shards of sequences that all take as long: the closed form, the engine's step, memory, and files."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos import convert
from scheduler.analytic import job_profile
from scheduler.bottleneck import headroom
from scheduler.cost import stage_memory_bytes, step_time_s
from scheduler.job import JobSpec
from scheduler.layer_sources import holdings_of
from scheduler.plan import Plan, PlanError
from scheduler.plan_text import plan_document, plan_of_document
from scheduler.planner import make_plan, plan_for
from scheduler.profile import DeviceProfile, ModelProfile
from scheduler.recovery import GoOn, Standing, fits, recover
from scheduler.replan import Measured
from scheduler.sequence import shard_bounds
from scheduler.settings import Setting, priced
from scheduler.shard_sizes import Work, even_ends, sizes_of, with_best_sizes
from scheduler.topology import Topology
from tests.scheduler.test_sequence import a_job, a_network, a_plan, profiles

FAST = a_network(4, 1e-6, 1e12)
works = st.builds(Work, st.floats(1e-3, 10), st.floats(0, 10))


def test_shards_of_pairs_alone_end_at_square_roots() -> None:
    """The k-th of D has (x_k^2 - x_(k-1)^2) of the pairs: a D-th each."""
    ends = even_ends([[Work(0.0, 1.0)]] * 4)
    assert ends == pytest.approx([sqrt(k / 4) for k in range(1, 5)])
    assert even_ends([[Work(1.0, 0.0)]] * 4) == pytest.approx([0.25, 0.5, 0.75, 1.0])
    # A device twice as fast takes twice the positions.
    assert even_ends([[Work(1.0, 0.0)], [Work(2.0, 0.0)]]) == pytest.approx([2 / 3, 1.0])


@given(st.integers(1, 3).flatmap(lambda n: st.lists(st.tuples(*[works] * n), min_size=1, max_size=6)))
def test_the_slowest_stage_of_each_shard_takes_as_long(shards: list[tuple[Work, ...]]) -> None:
    ends = even_ends(shards)
    slowest = [
        max(w.positions_s * (b - a) + w.pairs_s * (b * b - a * a) for w in shard)
        for shard, (a, b) in zip(shards, pairwise([0.0, *ends]), strict=True)
    ]
    assert slowest == pytest.approx([slowest[0]] * len(shards), rel=1e-6)


@given(st.integers(1, 60), st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_whole_positions_are_all_and_one_at_least(length: int, ends: list[float]) -> None:
    ends = [*sorted(ends), 1.0][: max(1, min(length, len(ends)))]
    ends[-1] = 1.0
    sizes = sizes_of(length, ends)
    assert (sum(sizes), min(sizes) >= 1, len(sizes)) == (length, True, len(ends))


def sized(plan: Plan, model: ModelProfile, devices: list[DeviceProfile], network: Topology) -> Plan:
    return with_best_sizes(
        plan,
        model,
        devices,
        network,
        lambda p: step_time_s(p, model, devices, network),
        lambda p: fits(p, model, network),
    )


@pytest.mark.parametrize("speeds", [[1e11, 1e11], [3e11, 1e11], [1e11, 3e11]])
def test_of_two_shards_it_is_nearly_the_best_that_there_is(speeds: list[float]) -> None:
    """Beside every multiple of 32 positions."""
    job = a_job(1, 2, 2048)
    model, plan = job_profile(job), a_plan(job)
    devices = profiles(model, speeds)
    found = sized(plan, model, devices, FAST)
    every = [
        step_time_s(replace(plan, shard_sizes=(n, 2048 - n)), model, devices, FAST)
        for n in range(32, 2048, 32)
    ]
    assert found.predicted_step_s <= 1.02 * min(every)
    assert found.predicted_step_s < 0.9 * step_time_s(plan, model, devices, FAST)
    assert found.predicted_step_s == pytest.approx(step_time_s(found, model, devices, FAST))


@pytest.mark.parametrize("shards", [2, 4])
def test_long_contexts_gain_nearly_what_the_last_shard_has_too_much(shards: int) -> None:
    """Of pairs alone the last of D equal shards has 2D - 1 of D^2: 2 - 1/D times a D-th."""
    job = a_job(1, shards, 65536)
    model, plan = job_profile(job), a_plan(job)
    devices = profiles(model, [1e12] * shards)
    network = a_network(shards, 1e-6, 1e13)
    found = sized(plan, model, devices, network)
    gain = step_time_s(plan, model, devices, network) / found.predicted_step_s
    assert 0.9 * (2 - 1 / shards) < gain <= 2 - 1 / shards
    assert list(found.shard_sizes) == sorted(found.shard_sizes, reverse=True)


def test_equal_shards_stay_where_others_gain_nothing() -> None:
    """A window's positions all see as many: equal shards of equal devices are even already."""
    job = a_job(1, 4, 512, layers="[[attention window=8, mlp]]")
    model, plan = job_profile(job), a_plan(job)
    network = a_network(4, 1e-6, 1e12)
    assert sized(plan, model, profiles(model, [1e12] * 4), network).shard_sizes == ()
    batch = replace(plan, split="batch", placement=plan.placement[:1], micro_batches=(4,))
    assert sized(batch, model, profiles(model, [1e12] * 4), network) == batch


def test_shards_grow_no_longer_than_memory_allows() -> None:
    job = a_job(1, 2, 4096)
    model, plan = job_profile(job), a_plan(job)
    devices = profiles(model, [1e11] * 2)
    free = sized(plan, model, devices, FAST)
    assert free.shard_sizes[0] > 2400
    needed = max(h.needed_bytes for h in headroom(plan, model, a_network(2)))
    tight = a_network(2, 1e-6, 1e12, memory=int(1.08 * needed))
    found = sized(plan, model, devices, tight)
    assert not fits(free, model, tight)
    assert fits(found, model, tight)
    assert 2048 < found.shard_sizes[0] < free.shard_sizes[0]
    exact = a_network(2, 1e-6, 1e12, memory=needed)
    assert sized(plan, model, devices, exact).shard_sizes == ()


def planned(job: JobSpec, speeds: list[float]) -> tuple[Plan, ModelProfile, list[DeviceProfile]]:
    model = job_profile(job)
    devices = profiles(model, speeds)
    return make_plan(job, model, devices, FAST.subset(list(range(len(speeds)))), 1), model, devices


def test_a_plan_says_what_its_shards_are_and_what_equal_ones_would_take() -> None:
    plan, model, devices = planned(a_job(1, 3, 4096), [1e11, 1e11, 2e11])
    there = FAST.subset([0, 1, 2])
    assert len(plan.shard_sizes) == 3
    assert sum(plan.shard_sizes) == 4096
    assert plan.predicted_step_s == pytest.approx(step_time_s(plan, model, devices, there))
    equal_s = step_time_s(replace(plan, shard_sizes=()), model, devices, there)
    assert plan.predicted_step_s < 0.9 * equal_s
    listed = ", ".join(map(str, plan.shard_sizes))
    assert (
        f"shards of {listed} positions, longer where each costs less; equal ones would take" in plan.explain()
    )
    given = plan_for(plan.placement, a_job(1, 3, 4096), model, devices, there, 1)
    assert given.shard_sizes, "a placement decided elsewhere is sized, too"


def test_a_lost_shards_positions_are_shared_by_speed() -> None:
    job = a_job(1, 3, 4096)
    plan, model, devices = planned(job, [1e11, 1e11, 3e11])
    lost = plan.device(0)
    here = tuple(d.device for d in devices if d.device != lost)
    now = Measured(model, [d for d in devices if d.device in here], FAST.subset([0, 1, 2]))
    found = recover(Standing(plan, here, holdings_of(plan, 7, here), 7, 100, 5), "too few", now)
    assert isinstance(found, GoOn)
    assert found.plan.n_replicas == 2
    assert len(found.plan.shard_sizes) == 2
    assert sum(found.plan.shard_sizes) == 4096
    equal = replace(found.plan, shard_sizes=())
    assert found.plan.predicted_step_s < step_time_s(equal, model, devices, FAST)


def test_sizes_go_through_files_and_messages_and_bad_ones_do_not() -> None:
    plan = replace(a_plan(a_job(1, 3)), shard_sizes=(300, 112, 100))
    assert plan_of_document(plan_document(plan), "p").shard_sizes == (300, 112, 100)
    assert convert.plan_from_message(convert.plan_to_message(plan)) == plan
    for sizes in ((300, 212), (300, 212, 0)):
        bad = replace(plan, shard_sizes=sizes)
        with pytest.raises(
            PlanError, match=r"p: shard_sizes: found \(300, 212.*; required none, or with split"
        ):
            plan_of_document(plan_document(bad), "p")
        with pytest.raises(
            convert.ConvertError, match=r"plan.shard_sizes: found . the least|plan.shard_sizes"
        ):
            convert.plan_from_message(convert.plan_to_message(bad))
    batch = replace(plan, split="batch")
    with pytest.raises(PlanError, match="shard_sizes"):
        plan_of_document(plan_document(batch), "p")
    with pytest.raises(
        convert.ConvertError, match=r"plan\.shard_sizes: found 3, the least 100; required none"
    ):
        convert.plan_from_message(convert.plan_to_message(batch))


def test_a_plan_for_sequences_of_another_length_has_no_price() -> None:
    plan, model, devices = planned(a_job(1, 3, 4096), [1e11] * 3)
    with pytest.raises(
        PlanError, match="positions for sequences of 4096; required shards that add up to them"
    ):
        step_time_s(replace(plan, shard_sizes=(100, 50, 50)), model, devices, FAST)


def test_a_shards_tensors_are_its_own_part() -> None:
    model = job_profile(a_job(1, 2, 512))
    shards = priced(Setting(shards=2, shard_sizes=(384, 128)), model, (), a_network(1)).model
    quarter = priced(Setting(shards=4), model, (), a_network(1)).model
    long, short = shards.of_replica(0), shards.of_replica(1)
    assert (long.sequence_length, short.sequence_length) == (384, 128)
    for whole, a, b, part in zip(model.layers, long.layers, short.layers, quarter.layers, strict=True):
        assert a.boundary_bytes == 3 * b.boundary_bytes
        assert a.boundary_bytes + b.boundary_bytes == whole.boundary_bytes
        assert b.boundary_bytes == part.boundary_bytes
    bounds = ((0, 384), (384, 512))
    assert shards.bounds == bounds != tuple(shard_bounds(512, 2))
    n = len(model.layers)
    assert stage_memory_bytes(long, 0, n, 2) > stage_memory_bytes(short, 0, n, 2)

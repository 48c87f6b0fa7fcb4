"""What a setting makes of profiles and links, which settings a job allows, and which one is found good."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import inf, prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from scheduler.analytic import device_profile, model_profile
from scheduler.cost import durations, predict, stage_memory
from scheduler.job import JobSpec, ModelSpec
from scheduler.plan import Plan
from scheduler.profile import DeviceProfile
from scheduler.settings import Choices, Setting, choices, priced, settings
from scheduler.topology import Device, Topology
from scheduler.tuning import WORTH, Price, tune

SHAPE = ModelSpec(layers=4, hidden=64, heads=4, vocab=300, max_positions=64)
MODEL = model_profile(SHAPE, 4, 64)
DEVICES = tuple(device_profile(MODEL, f"d{i}", 1e9, 1e9) for i in range(2))
TOPOLOGY = Topology(
    (Device("d0"), Device("d1")), np.full((2, 2), 0.01), np.full((2, 2), 8e6), np.full((2, 2), 1e6)
)


def a_job(**keys: object) -> JobSpec:
    return JobSpec.model_validate(
        {
            "name": "t",
            "model": SHAPE,
            "data": {"files": ("x",)},
            "sequence_length": 64,
            "global_batch": 24,
            "micro_batch": 4,
            "steps": 1,
            **keys,
        }
    )


def a_plan(**knobs: object) -> Plan:
    plan = Plan(1, (("d0", "d1"),), ((0, 3), (3, 6)), (6,), "1f1b")
    return replace(plan, **knobs)  # type: ignore[arg-type]


def test_what_is_not_turned_leaves_everything_as_it_was() -> None:
    assert priced(Setting(), MODEL, DEVICES, TOPOLOGY) == (MODEL, DEVICES, TOPOLOGY)
    assert priced(Setting(micro_batch=4), MODEL, DEVICES, TOPOLOGY) == (MODEL, DEVICES, TOPOLOGY)


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 12])
def test_another_micro_batch_costs_what_its_own_profile_says(micro_batch: int) -> None:
    scaled = priced(Setting(micro_batch=micro_batch), MODEL, DEVICES, TOPOLOGY)
    assert scaled.model == model_profile(SHAPE, micro_batch, 64)
    compute_bound = device_profile(MODEL, "d", 1e9)
    exact = device_profile(scaled.model, "d", 1e9)
    found = compute_bound.scaled(micro_batch / 4)
    assert found.forward_s == pytest.approx(exact.forward_s)
    assert found.backward_s == pytest.approx(exact.backward_s)
    assert found.optimizer_s == exact.optimizer_s


def test_what_does_not_grow_with_the_samples_stays() -> None:
    profile = DeviceProfile("d", (3.0,), (5.0,), (1.0,), (1.0,), (2.0,))
    assert profile.scaled(2.0).forward_s == (1.0 + 2 * 2.0,)
    assert profile.scaled(0.5).backward_s == (2.0 + 0.5 * 3.0,)
    assert profile.scaled(0.5).scaled(2.0) == profile
    again = profile.recomputing()
    assert again.backward_s == (8.0,)
    assert again.backward_fixed_s == (3.0,)
    assert again.scaled(2.0).backward_s == pytest.approx((5.0 + 8.0,))


def test_recomputation_doubles_forwards_and_keeps_inputs() -> None:
    plain, again = (durations(a_plan(recompute=r), MODEL, DEVICES, TOPOLOGY) for r in (False, True))
    assert again.forward_s == plain.forward_s
    assert again.backward_s == pytest.approx(np.add(plain.forward_s, plain.backward_s))
    model = priced(Setting(recompute=True), MODEL, DEVICES, TOPOLOGY).model
    for a, b, kept in (
        (0, 3, 4 * 64 * 8),  # the tokens
        (1, 3, MODEL.layers[0].boundary_bytes),
        (3, 6, MODEL.layers[2].boundary_bytes + 4 * 64 * 8),  # and the targets
    ):
        whole, inputs = stage_memory(MODEL, a, b), stage_memory(model, a, b)
        assert inputs.saved_bytes == kept
        assert inputs.working_bytes == whole.working_bytes + whole.saved_bytes
        assert inputs.total_bytes(3) == whole.total_bytes(1) + 3 * kept
        assert replace(inputs, saved_bytes=whole.saved_bytes, working_bytes=0) == whole


def test_streams_fill_the_link() -> None:
    sent = {}
    for streams in (0, 1, 4, 8, 16):
        spans = predict(a_plan(streams=streams), MODEL, DEVICES, TOPOLOGY).spans
        send = next(s for s in spans if s.kind == "send")
        sent[streams] = send.duration_s - 0.01
    n_bytes = MODEL.layers[2].boundary_bytes
    assert sent[1] == pytest.approx(n_bytes / 1e6)
    assert sent[4] == pytest.approx(n_bytes / 4e6)
    assert sent[8] == sent[16] == sent[0] == pytest.approx(n_bytes / 8e6)


@effort(max_examples=40, deadline=None)
@given(
    st.sampled_from([1, 2, 4, 8]),
    st.booleans(),
    st.sampled_from([0, 1, 4]),
    st.sampled_from([("1f1b", 0), ("1f1b", 2), ("gpipe", 0)]),
)
def test_a_plan_costs_the_same_from_raw_and_from_priced_inputs(
    micro_batch: int, recompute: bool, streams: int, order: tuple[str, int]
) -> None:
    setting = Setting(order[0], order[1], micro_batch, recompute, streams)
    plan = a_plan(**setting.knobs, micro_batches=(24 // micro_batch,))
    assert Setting.of(plan) == setting
    inputs = priced(setting, MODEL, DEVICES, TOPOLOGY)
    assert predict(plan, *inputs) == predict(plan, MODEL, DEVICES, TOPOLOGY)
    bare = replace(plan, micro_batch=0, recompute=False, streams=0)
    assert predict(bare, *inputs) == predict(plan, MODEL, DEVICES, TOPOLOGY)


def test_a_job_that_names_every_knob_allows_one_setting() -> None:
    job = a_job(recompute=True, streams=3, schedule={"name": "gpipe"})
    assert settings(job, TOPOLOGY, 2, 1) == (Setting("gpipe", 0, 4, True, 3),)


def test_open_knobs_come_nearest_first_and_with_their_reasons() -> None:
    job = a_job(micro_batch="auto", schedule={"name": "auto", "warmup_extra": "auto"})
    assert job.profiled_micro_batch == 4
    c = choices(job, TOPOLOGY, 2, 3)
    assert all(c.positions(c.at(p)) == p for p in product(*map(range, c.sizes)))
    assert c.micro_batches == (4, 3, 6, 2, 8, 1)  # 12 and 24 leave a replica without
    assert c.orders == (*(("1f1b", d) for d in (0, 1, 2, 4)), ("gpipe", 0))
    assert c.recompute == (False, True)
    assert c.streams == (1, 2, 4, 8)
    every = settings(job, TOPOLOGY, 2, 3)
    assert len(every) == len(set(every)) == 6 * 5 * 2 * 4
    assert every[0] == Setting("1f1b", 0, 4, False, 1)
    assert not every[0].reason
    assert all(s.reason for s in every[1:])
    turned = c.at((3, 3, 2, 1))
    assert turned == Setting("1f1b", 2, 2, True, 8)
    assert turned.reason == (
        "8 streams carry more than one flow; micro-batches of 2 samples take less memory and leave a "
        "smaller bubble; 1f1b with 2 more in flight a stage hides transfers; "
        "doing forwards again saves memory"
    )


def test_one_stage_has_one_order_and_links_of_unknown_flows_one_number_of_streams() -> None:
    job = a_job(schedule={"name": "auto", "warmup_extra": "auto"})
    free = Topology(TOPOLOGY.devices, TOPOLOGY.latency_s, TOPOLOGY.bandwidth_Bps)
    c = choices(job, free, 1, 2)
    assert (c.orders, c.streams) == ((("1f1b", 0),), (0,))
    alone = Topology((Device("d0"),), np.zeros((1, 1)), np.ones((1, 1)), np.ones((1, 1)))
    assert choices(job, alone, 1, 1).streams == (1,)


OPEN = Choices((1, 2, 4), (4, 2, 8), (("1f1b", 0), ("1f1b", 1), ("gpipe", 0)), (False, True))


@effort(max_examples=200, deadline=None)
@given(st.data())
def test_tuning_never_ends_worse_than_it_began_and_what_fits_is_found(data: st.DataObject) -> None:
    """Knobs that act each for itself: the best of every knob is the best of all."""
    factors = [data.draw(st.lists(st.floats(0.1, 2), min_size=n, max_size=n)) for n in OPEN.sizes]
    lacks = data.draw(st.booleans())
    table = {
        OPEN.at(p): Price(
            0 if p[3] or not lacks else 100 + p[1],
            prod(f[i] for f, i in zip(factors, p, strict=True)),
        )
        for p in product(*map(range, OPEN.sizes))
    }
    setting, price = tune(OPEN, table.__getitem__)
    assert price == table[setting]
    assert price.missing_bytes == 0
    assert not table[OPEN.at((0, 0, 0, 0))].beats(price)
    best = min(p.step_s for p in table.values() if p.missing_bytes == 0)
    assert price.step_s * (1 - WORTH) ** len(OPEN.sizes) <= best


def test_a_knob_is_not_turned_for_less_than_it_must_save() -> None:
    def price(s: Setting) -> Price:
        return Price(0, 1.0 if s.streams == 1 else 1.0 - 0.9 * WORTH)

    assert tune(OPEN, price)[0] == OPEN.at((0, 0, 0, 0))


def test_what_fits_nowhere_comes_back_with_what_lacks_least() -> None:
    setting, price = tune(OPEN, lambda s: Price(s.micro_batch * 10 - s.recompute, inf))
    assert (setting.micro_batch, setting.recompute, price.missing_bytes) == (2, True, 19)

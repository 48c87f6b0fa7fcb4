"""The fast twin against the engine: equal where nothing is shared."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from scheduler.action_table import pipeline_table
from scheduler.actions import label
from scheduler.codec_speed import CodecSpeed
from scheduler.cost import stage_memory_bytes, step_time_s
from scheduler.link_codecs import codecs_of_plan
from scheduler.plan import Plan
from scheduler.plan_codecs import PlanCodecs, Rows, plan_codecs
from scheduler.profile import DeviceProfile, LayerProfile, ModelProfile
from scheduler.schedule import NAMES, ScheduleError, in_flight, stage_actions
from scheduler.settings import Setting, priced
from scheduler.step_time import layout_missing_bytes, layout_of, plan_step_s, pricing_of, tables_for
from scheduler.topology import Topology
from tests.scheduler.placements import network

LABELS = ("F{}", "B{}", "recv activation {}", "recv gradient {}", "send activation {}", "send gradient {}")
"""What a row's first number means, as `actions.label` tells it."""


def random_model(rng: np.random.Generator, n_layers: int, tied: bool) -> ModelProfile:
    sizes = rng.integers(10**5, 10**8, size=(n_layers, 4)).tolist()
    layers = [LayerProfile(f"l{i}", 1, 2, a, b, c, d) for i, (a, b, c, d) in enumerate(sizes)]
    if tied and n_layers > 1:
        layers[-1] = replace(layers[-1], tied_to="l0")
    return ModelProfile(tuple(layers), 1, 8)


def random_devices(rng: np.random.Generator, topology: Topology, n_layers: int) -> list[DeviceProfile]:
    return [
        DeviceProfile(
            d.name,
            *(tuple(rng.uniform(0, 0.3, n_layers).tolist()) for _ in range(3)),
            codecs=tuple(CodecSpeed(name, *rng.uniform(0, 2e-8, 2).tolist()) for name in ("fp16", "kbit")),
        )
        for d in topology.devices
    ]


def random_case(
    rng: np.random.Generator, kind: str
) -> tuple[Plan, ModelProfile, list[DeviceProfile], Topology]:
    n_stages, n_replicas = int(rng.integers(1, 6)), int(rng.integers(1, 5))
    n_layers = n_stages + int(rng.integers(4))
    topology = network(kind, n_stages * n_replicas + 1, rng)
    names = rng.permutation([d.name for d in topology.devices])[: n_stages * n_replicas].tolist()
    ends = np.sort(rng.permutation(np.arange(1, n_layers))[: n_stages - 1])
    cut = [0, *ends.tolist(), n_layers]
    plan = Plan(
        version=1,
        placement=tuple(tuple(names[r * n_stages : (r + 1) * n_stages]) for r in range(n_replicas)),
        partition=tuple(pairwise(cut)),
        micro_batches=tuple(int(m) for m in rng.integers(1, 9, size=n_replicas)),
        schedule=str(rng.choice(NAMES)),
        warmup_extra=int(rng.integers(3)),
    )
    model = random_model(rng, n_layers, bool(rng.integers(2)))
    return plan, model, random_devices(rng, topology, n_layers), topology


def random_codecs(rng: np.random.Generator, plan: Plan) -> PlanCodecs:
    """Another codec on every link, of those that take tensors of any size."""
    names = ["identity", "fp16", "kbit:bits=4,scale=tensor", "kbit:bits=2,scale=tensor"]

    def rows() -> Rows:
        return tuple(
            tuple(str(rng.choice(names)) for _ in plan.partition[1:]) for _ in range(plan.n_replicas)
        )

    return plan_codecs(rows(), rows(), tuple(str(rng.choice([*names, "topk"])) for _ in plan.partition))


@pytest.mark.parametrize("kind", ["uniform", "clustered", "random", "asymmetric"])
def test_the_twin_is_the_engine_where_nothing_is_shared(kind: str) -> None:
    rng = np.random.default_rng(5)
    for _ in range(80):
        plan, model, devices, topology = random_case(rng, kind)
        plan = replace(plan, codecs=random_codecs(rng, plan))
        pricing = pricing_of(model, devices, topology, codecs_of_plan(plan, [p.device for p in devices]))
        assert pricing.exact
        expected = step_time_s(plan, model, devices, topology)
        assert plan_step_s(pricing, plan) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kind", ["uniform", "random", "asymmetric"])
def test_the_twin_is_the_engine_for_local_steps(kind: str) -> None:
    rng = np.random.default_rng(8)
    faster = 0
    for _ in range(60):
        plan, model, devices, topology = random_case(rng, kind)
        every = step_time_s(plan, model, devices, topology)
        plan = replace(plan, local_steps=int(rng.integers(2, 9)))
        pricing = pricing_of(*priced(Setting.of(plan), model, devices, topology))
        expected = step_time_s(plan, model, devices, topology)
        assert plan_step_s(pricing, plan) == pytest.approx(expected, rel=1e-9)
        assert expected <= every * (1 + 1e-9)
        faster += expected < every * (1 - 1e-9)
    assert faster > 30


def test_memory_is_counted_as_the_cost_model_counts_it() -> None:
    rng = np.random.default_rng(6)
    for _ in range(40):
        plan, model, devices, topology = random_case(rng, "random")
        known = tuple(replace(d, memory_bytes=int(rng.integers(10**9))) for d in topology.devices)
        topology = Topology(known, topology.latency_s, topology.bandwidth_Bps)
        memory = {d.name: d.memory_bytes for d in known}
        expected = max(
            stage_memory_bytes(model, *plan.partition[plan.stage_of(r)], in_flight(plan.actions(r)))
            - memory[plan.device(r)]
            for r in range(plan.n_ranks)
        )
        pricing = pricing_of(model, devices, topology)
        tables = tables_for(plan.schedule, plan.n_stages, plan.micro_batches, plan.warmup_extra)
        assert layout_missing_bytes(pricing, tables, layout_of(pricing, plan)) == pytest.approx(expected)


@pytest.mark.parametrize("schedule", NAMES)
def test_a_table_holds_every_action_of_every_stage_in_its_order(schedule: str) -> None:
    table = pipeline_table(schedule, 3, 5, 1)
    for stage in range(3):
        own = table.rows[table.rows[:, 1] == stage]
        actions = stage_actions(
            schedule, stage=stage, n_stages=3, n_micro_batches=5, first_rank=0, warmup_extra=1
        )
        assert [LABELS[row[0]].format(row[2]) for row in own] == [
            label(a).split(" from")[0].split(" to")[0] for a in actions[:-2]
        ]
        assert table.in_flight[stage] == in_flight(actions)


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(ScheduleError, match="found schedule 'hope'"):
        pipeline_table("hope", 2, 2, 0)


def test_shared_cores_and_uplinks_are_told() -> None:
    topology = network("random", 4, np.random.default_rng(0))
    model = random_model(np.random.default_rng(0), 4, tied=False)
    devices = random_devices(np.random.default_rng(0), topology, 4)
    for change in ({"host": "h", "host_cores": 2}, {"uplink_Bps": 1e6}, {"downlink_Bps": 1e6}):
        shared = tuple(replace(d, **change) for d in topology.devices)
        other = Topology(shared, topology.latency_s, topology.bandwidth_Bps)
        assert not pricing_of(model, devices, other).exact
    alone = tuple(replace(d, host=d.name, host_cores=2) for d in topology.devices)
    assert pricing_of(model, devices, Topology(alone, topology.latency_s, topology.bandwidth_Bps)).exact

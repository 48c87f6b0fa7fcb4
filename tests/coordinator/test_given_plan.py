"""A plan that somebody else decided: taken if it fits job and workers, priced with what was measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.commands import MakePlan
from coordinator.events import LinkSample
from coordinator.measurements import keep_measurements, read_measurements
from coordinator.planning import given, topology_of
from scheduler.cost import predict
from scheduler.job import DataSpec, JobSpec, ModelSpec
from scheduler.plan import Plan, PlanError
from scheduler.profile import DeviceProfile, LayerProfile, ModelProfile
from scheduler.topology import Device

JOB = JobSpec(
    name="j", model=ModelSpec(layers=2, hidden=8, heads=2, vocab=99), data=DataSpec(files=("x",)),
    sequence_length=4, global_batch=6, micro_batch=1, steps=1,
)  # fmt: skip
LAYERS = tuple(LayerProfile(f"l{i}", 1.0, 2.0, 40, 100, 10, 80) for i in range(4))
REQUEST = MakePlan(
    7,
    ModelProfile(LAYERS, 1, 4),
    (Device("a", region="here", host="h", host_cores=2), Device("b", memory_bytes=9)),
    tuple(DeviceProfile(n, (0.1,) * 4, (0.2,) * 4, (0.01,) * 4, forward_fixed_s=(0.0,) * 4) for n in "ab"),
    (("a", LinkSample("b", 0.1, 1000.0, flow_Bps=400.0)), ("b", LinkSample("a", 0.2, 2000.0))),
)
PLAN = Plan(1, (("b", "a"),), ((0, 2), (2, 4)), (6,), "1f1b")


def test_the_plan_is_taken_under_the_coordinator_s_version_and_priced() -> None:
    planning = given(PLAN)(JOB, REQUEST)
    taken = replace(PLAN, version=7, micro_batch=1)
    expected = predict(taken, REQUEST.model, REQUEST.profiles, topology_of(REQUEST))
    assert planning.predicted == expected
    assert planning.plan == replace(
        taken, predicted_step_s=expected.duration_s, reasons=("The plan was given.",)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"placement": (("b", "c"),)}, "the plan that was given needs c; found the workers a, b"),
        ({"micro_batches": (5,)}, "takes 5 samples a step and has 4 layers; the job requires 6 and 4"),
        ({"partition": ((0, 2), (2, 5))}, "has 5 layers; the job requires 6 and 4"),
    ],
)
def test_a_plan_for_something_else_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        given(replace(PLAN, **change))(JOB, REQUEST)  # type: ignore[arg-type]


def test_what_was_measured_is_kept_and_read_back(tmp_path: Path) -> None:
    keep_measurements(tmp_path, given(PLAN)(JOB, REQUEST))
    found = read_measurements(tmp_path)
    assert (found.model, found.profiles, found.devices) == (REQUEST.model, REQUEST.profiles, REQUEST.devices)
    expected = topology_of(REQUEST)
    assert found.topology.latency_s.tolist() == expected.latency_s.tolist()
    assert found.topology.bandwidth_Bps.tolist() == expected.bandwidth_Bps.tolist()
    assert found.topology.flow_Bps is not None
    assert expected.flow_Bps is not None
    assert found.topology.flow_Bps.tolist() == expected.flow_Bps.tolist()

"""Who keeps copies for whom, and whether there is room for them beside what is trained with."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from scheduler.bottleneck import headroom
from scheduler.neighbours import SETS, arrange
from scheduler.plan import Plan
from scheduler.profile import LayerProfile, ModelProfile
from scheduler.topology import Device, Topology

LAYER = LayerProfile("l", 1.0, 2.0, 1000, 100, 10, 2000)
MODEL = ModelProfile(tuple(replace(LAYER, name=f"l{i}") for i in range(6)), 1, 8)
COPY = 2 * 3000
"""Weights and state of a stage of two layers."""


def a_plan(*pipelines: tuple[str, ...]) -> Plan:
    cuts = [2 * s for s in range(len(pipelines[0]) + 1)]
    return Plan(1, pipelines, tuple(pairwise(cuts)), (1,) * len(pipelines), "1f1b", micro_batch=1)


def a_topology(plan: Plan, memory: dict[str, int], cores: int = 1) -> Topology:
    devices = tuple(Device(n, memory_bytes=memory.get(n, 0), host_cores=cores) for n in plan.devices)
    n = len(devices)
    return Topology(devices, np.full((n, n), 0.01), np.full((n, n), 1e6))


def needed(plan: Plan, name: str) -> int:
    return next(h.needed_bytes for h in headroom(plan, MODEL, a_topology(plan, {})) if h.device == name)


def test_who_has_room_keeps_them_and_not_who_is_next() -> None:
    plan = a_plan(("a", "b", "c"))
    anywhere = {k.holder: k.keeper for k in arrange(plan, MODEL, a_topology(plan, {})).keepers}
    assert anywhere["a"] == "b"
    tight = {"b": needed(plan, "b") + SETS * COPY}
    found = {k.holder: k.keeper for k in arrange(plan, MODEL, a_topology(plan, tight)).keepers}
    assert "b" not in found.values()


@pytest.mark.parametrize(("spare", "fits"), [(2 * SETS * COPY, True), (2 * SETS * COPY - 1, False)])
def test_copies_count_to_the_byte_and_what_lacks_is_said(spare: int, fits: bool) -> None:
    plan = a_plan(("a", "b"))
    memory = {n: needed(plan, n) + spare for n in ("a", "b")}
    topology = a_topology(plan, memory)
    said = arrange(plan, MODEL, topology).lacks
    assert (said == "") == fits
    if not fits:
        assert "do not fit on b" in said
        assert "1 B too much" in said
        assert "leave out checkpoint.neighbours_every" in said


def test_a_gpus_memory_is_not_where_copies_are_and_what_is_unknown_is_enough() -> None:
    plan = a_plan(("a", "b"))
    of_gpus = a_topology(plan, {"a": 1, "b": 1}, cores=0)
    assert arrange(plan, MODEL, of_gpus).lacks == ""
    unknown = a_topology(plan, {})
    assert arrange(plan, MODEL, unknown).lacks == ""

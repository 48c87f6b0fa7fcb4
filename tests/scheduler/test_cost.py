"""The cost model: durations from profiles, bytes through codecs, memory by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np
import pytest

from compression.spec import IdentitySpec, codec_spec
from scheduler.cost import (
    durations,
    flat_wire_bytes_of,
    predict,
    stage_memory_bytes,
    step_time_s,
    tied_bytes,
    wire_bytes_of,
)
from scheduler.engine import FreeNetwork
from scheduler.plan import Plan, PlanError
from scheduler.plan_codecs import PlanCodecs
from scheduler.profile import DeviceProfile, LayerProfile, ModelProfile
from scheduler.topology import Device, Topology


def layer(
    name: str, parameters: int, boundary: int = 100, saved: int = 10, tied_to: str = ""
) -> LayerProfile:
    return LayerProfile(name, 1.0, 2.0, parameters, boundary, saved, 2 * parameters, tied_to)


MODEL = ModelProfile(
    (
        layer("embedding", 1000),
        layer("block.0", 400, saved=50),
        layer("block.1", 400, saved=50),
        layer("head", 1010, boundary=8, tied_to="embedding"),
    ),
    micro_batch=1,
    sequence_length=8,
)
FAST = DeviceProfile("fast", (1, 2, 3, 4), (2, 4, 6, 8), (0.1, 0.2, 0.3, 0.4))
SLOW = DeviceProfile("slow", (2, 4, 6, 8), (4, 8, 12, 16), (0.2, 0.4, 0.6, 0.8))
TOPOLOGY = Topology(
    (Device("fast", host="h1", host_cores=1), Device("slow", host="h1", host_cores=2)),
    np.full((2, 2), 0.5),
    np.full((2, 2), 10.0),
)
PIPELINE = Plan(1, (("fast", "slow"),), ((0, 2), (2, 4)), (2,), "1f1b")
REPLICAS = Plan(1, (("fast",), ("slow",)), ((0, 4),), (1, 1), "1f1b")


def test_durations_sum_the_layers_of_each_rank() -> None:
    d = durations(PIPELINE, MODEL, [SLOW, FAST], TOPOLOGY)
    assert d.forward_s == (3, 14)
    assert d.backward_s == (6, 28)
    assert d.optimizer_s == pytest.approx((0.3, 1.4))
    assert (d.activation_bytes, d.gradient_bytes) == ((100, 0), (0, 100))
    assert d.reduce_bytes == (1400, 1410)
    assert d.tied_bytes == 1000
    assert d.shared_cores == (((0, 1), 1),)  # the host's devices disagree: the least counts


def test_one_stage_holds_a_tied_weight_once() -> None:
    d = durations(REPLICAS, MODEL, [FAST, SLOW], TOPOLOGY)
    assert d.reduce_bytes == (1000 + 400 + 400 + 10,)
    assert d.tied_bytes == 0
    assert tied_bytes(MODEL, 1) == 0


def test_codecs_price_what_goes_on_the_wire() -> None:
    codecs = PlanCodecs((("kbit:scale=tensor",),), (("fp16",),), ("kbit:bits=4", "fp16"))
    short = replace(PIPELINE, codecs=codecs)
    d = durations(short, MODEL, [FAST, SLOW], TOPOLOGY)
    assert (d.activation_bytes, d.gradient_bytes) == ((25 + 2, 0), (0, 50))  # 25 values, one scale
    assert d.reduce_bytes == (350 // 2 + 2 * 6, 2 * (1410 // 4))
    assert d.tied_bytes == 250 // 2 + 2 * 4  # as the first stage's
    assert step_time_s(short, MODEL, [FAST, SLOW], TOPOLOGY) < step_time_s(
        PIPELINE, MODEL, [FAST, SLOW], TOPOLOGY
    )


class _OneBitWithScales:
    """A bit a value and four bytes a row, and what it was asked for."""

    name = "one-bit"

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def wire_bytes(self, shape: Sequence[int], dtype_bytes: int) -> int:  # noqa: ARG002
        self.shapes.append(tuple(shape))
        return prod(shape) // 8 + 4 * prod(shape[:-1])

    def relative_error(self, shape: Sequence[int]) -> float:
        raise NotImplementedError("the cost model asks for bytes only")


def test_a_codec_is_asked_for_the_shapes_it_will_see() -> None:
    spec = _OneBitWithScales()
    price = wire_bytes_of(spec, replace(MODEL, micro_batch=2), dtype_bytes=4)
    assert price(2 * 8 * 16 * 4) == 2 * 8 * 16 // 8 + 4 * 2 * 8
    assert price(17 * 4) == 17 // 8 + 4
    assert spec.shapes == [(2, 8, 16), (17,)]
    assert wire_bytes_of(IdentitySpec(), MODEL)(4000) == 4000


def test_memory_is_weights_gradients_state_saved_and_a_boundary() -> None:
    # blocks 1-2: 2 x 800 weights and gradients, 1600 of state, 3 x 100 saved, the boundary of 100
    assert stage_memory_bytes(MODEL, 1, 3, in_flight=3) == 1600 + 1600 + 300 + 100
    # the head alone still takes in a boundary of 100
    assert stage_memory_bytes(MODEL, 3, 4, in_flight=1) == 2020 + 2020 + 10 + 100
    # embedding and head together hold the shared weight and its state once
    assert stage_memory_bytes(MODEL, 0, 4, in_flight=0) == 2 * 1810 + 2 * (1400 + 400 + 10) + 100


def test_prediction_is_the_engine_s_by_default_over_the_topology() -> None:
    lone = Topology(
        tuple(replace(d, host_cores=0) for d in TOPOLOGY.devices), TOPOLOGY.latency_s, TOPOLOGY.bandwidth_Bps
    )
    free = predict(PIPELINE, MODEL, [FAST, SLOW], lone, network=FreeNetwork())
    # first forward, both micro-batches on the slow stage, last backward, the slow stage's optimizer
    assert free.duration_s == pytest.approx(3 + 2 * (14 + 28) + 6 + 1.4)
    assert step_time_s(PIPELINE, MODEL, [FAST, SLOW], lone) > free.duration_s


def test_unknown_devices_and_layers_are_named() -> None:
    with pytest.raises(PlanError, match="device slow: found no profile"):
        durations(PIPELINE, MODEL, [FAST], TOPOLOGY)
    short = DeviceProfile("fast", (1, 2, 3), (1, 2, 3), (1, 2, 3))
    with pytest.raises(PlanError, match=r"device fast: found profiles of \[3\] layers, required 4"):
        durations(PIPELINE, MODEL, [short, SLOW], TOPOLOGY)
    with pytest.raises(PlanError, match="device fast: found two profiles"):
        durations(PIPELINE, MODEL, [FAST, FAST, SLOW], TOPOLOGY)
    with pytest.raises(PlanError, match="device slow: found no such device in the topology"):
        durations(PIPELINE, MODEL, [FAST, SLOW], TOPOLOGY.subset([0]))
    loose = replace(MODEL, layers=(*MODEL.layers[:3], layer("head", 1, tied_to="nothing")))
    with pytest.raises(PlanError, match="layer head: found tied_to 'nothing'"):
        tied_bytes(loose, 2)


def test_weights_are_priced_as_one_row_whose_last_group_may_be_short() -> None:
    wire_bytes = flat_wire_bytes_of(codec_spec("kbit:bits=4,group=32"))
    assert [wire_bytes(4 * n) for n in (65, 96)] == [33 + 3 * 2, 48 + 3 * 2]
    assert flat_wire_bytes_of(codec_spec("identity"))(260) == 260

"""Profiles: which layers are timed how often, and the line through two sizes of micro-batch."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from scheduler.analytic import job_profile
from scheduler.job_compression import CompressionSpec
from tests.worker.pipelines import make_job
from worker import profiler
from worker.codec_profiler import FLAT_VALUES
from worker.profiler import profile_model


def ticking(step_s: float) -> Callable[[], float]:
    """A clock that shows `step_s` more at every look."""
    now_s = 0.0

    def clock() -> float:
        nonlocal now_s
        now_s += step_s
        return now_s

    return clock


def test_layers_are_the_analytic_ones_and_blocks_are_timed_once() -> None:
    job = make_job("llama")
    looks = 0

    def clock() -> float:
        nonlocal looks
        looks += 1
        return float(looks)

    layers, profile = profile_model(job, job.shape, torch.device("cpu"), "w", clock)
    assert layers == job_profile(job).layers
    assert looks == 3 * (profiler.WARM_UPS + profiler.REPEATS) * 4
    assert profile.device == "w"
    assert profile.forward_s == profile.backward_s == profile.optimizer_s == (1.0,) * 5
    assert profile.forward_fixed_s == profile.backward_fixed_s == ()


def test_an_open_size_is_measured_at_half_too() -> None:
    """By a clock to which every size takes as long, all of it is fixed."""
    job = make_job().model_copy(update={"micro_batch": "auto"})
    assert job.profiled_micro_batch == 4
    _, profile = profile_model(job, job.shape, torch.device("cpu"), "w", ticking(0.5))
    assert profile.forward_fixed_s == profile.backward_fixed_s == (0.5,) * 5
    assert profile.scaled(2.0).forward_s == profile.forward_s


@pytest.mark.parametrize(
    ("whole_s", "half_s", "fixed_s"),
    [(4.0, 2.0, 0.0), (4.0, 3.0, 2.0), (4.0, 4.0, 4.0), (4.0, 1.0, 0.0), (4.0, 5.0, 4.0)],
)
def test_the_fixed_part_is_where_the_line_begins_and_never_outside(
    whole_s: float, half_s: float, fixed_s: float
) -> None:
    assert profiler._fixed_s(whole_s, half_s, 0.5) == pytest.approx(fixed_s)


def test_codecs_that_the_job_may_use_are_timed_and_no_others() -> None:
    def speeds(compression: str) -> dict[str, tuple[float, float]]:
        asked = CompressionSpec.model_validate_json(compression)
        job = make_job().model_copy(update={"compression": asked})
        _, profile = profile_model(job, job.shape, torch.device("cpu"), "w", ticking(0.5))
        return {s.name: (s.encode_s, s.decode_s) for s in profile.codecs}

    assert speeds("{}") == {}
    named = speeds('{"activations": {"acsgd": {"group": 32}}, "reduce": {"feedback": {}}}')
    job = make_job()
    boundary = math.prod((job.profiled_micro_batch, job.sequence_length, job.shape.hidden))
    assert named["acsgd:group=32"] == (0.5 / boundary, 0.5 / boundary)
    assert named["feedback"] == (0.5 / FLAT_VALUES, 0.5 / FLAT_VALUES)
    assert len(named) == 3  # and what goes back over the boundary
    auto = speeds('{"activations": {"auto": {"change": 0.2}}, "reduce": {"auto": {"max_error": 1.0}}}')
    assert {name.partition(":")[0] for name in auto} >= {"kbit", "acsgd", "feedback", "topk"}

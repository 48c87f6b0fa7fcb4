"""Costs from shapes: published sizes, rules of thumb, the roofline. Against layers: `tests/worker/model`."""

from __future__ import annotations

from math import inf

import pytest

from scheduler.analytic import (
    LOSS_CHUNK_BYTES,
    ShapeError,
    accelerator_profile,
    device_profile,
    job_profile,
    model_profile,
)
from scheduler.gpus import accelerator
from scheduler.job import JobSpec, ModelSpec, OptimizerSpec, resolve_model
from scheduler.presets import PRESETS


@pytest.mark.parametrize(
    ("preset", "published"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-xl", 1_557_611_200),
        ("gpt3-xl", 1_315_723_264),
        ("llama-7b", 6_738_415_616),
        ("llama3-70b", 70_553_706_496),
        ("smollm2-135m", 134_515_008),
    ],
)
def test_a_presets_layers_hold_its_published_parameters(preset: str, published: int) -> None:
    shape = resolve_model(ModelSpec(preset=preset))
    layers = model_profile(shape, 1, 128).layers
    assert shape.vocab is not None
    shared = shape.vocab * shape.hidden if shape.tied else 0
    assert sum(x.parameter_bytes for x in layers) == 4 * (published + shared)
    assert sum(x.state_bytes for x in layers) == 8 * (published + shared)


@pytest.mark.parametrize("preset", ["gpt3-xl", "llama-7b"])
def test_a_token_costs_six_flops_a_parameter_and_its_attention(preset: str) -> None:
    """Kaplan et al. 2020: 6 N a token, plus 12 x layers x length x width for attention; here its backward
    has 2.5 times forward's products instead of 2, so 14."""
    length = 1024
    model = model_profile(ModelSpec(preset=preset), 1, length)
    products = sum(x.parameter_bytes // 4 for x in model.layers[1:])
    width = model.layers[0].boundary_bytes // (length * 4)
    expected = length * (6 * products + 14 * (len(model.layers) - 2) * length * width)
    assert sum(x.forward_flops + x.backward_flops for x in model.layers) == pytest.approx(expected, rel=1e-3)


def test_gpt3_xl_in_16_bits_written_out() -> None:
    model = model_profile(ModelSpec(preset="gpt3-xl"), 1, 2048, dtype_bytes=2, parameter_dtype_bytes=2)
    assert {x.boundary_bytes for x in model.layers[:-1]} == {8 << 20}
    assert model.layers[-1].boundary_bytes == 0
    assert model.layers[1].parameter_bytes == 2 * 50_358_272
    assert model.layers[1].state_bytes == 8 * 50_358_272


def test_profiles_are_linear_in_samples_and_parameters_are_not() -> None:
    one, four = (model_profile(ModelSpec(preset="gpt2"), b, 256) for b in (1, 4))
    for a, b in zip(one.layers, four.layers, strict=True):
        assert b.forward_flops == 4 * a.forward_flops
        assert b.backward_flops == 4 * a.backward_flops
        assert b.boundary_bytes == 4 * a.boundary_bytes
        assert b.saved_bytes == 4 * a.saved_bytes
        assert b.parameter_bytes == a.parameter_bytes


def test_a_long_micro_batch_makes_its_logits_in_chunks() -> None:
    short, long = (model_profile(ModelSpec(preset="llama3-8b"), 1, t).layers[-1] for t in (256, 4096))
    assert short.backward_flops == 2 * short.forward_flops
    assert long.backward_flops == 3 * long.forward_flops
    assert short.working_bytes == 0
    assert 0.99 * LOSS_CHUNK_BYTES < long.working_bytes <= LOSS_CHUNK_BYTES
    assert long.saved_bytes < 2 * short.saved_bytes


@pytest.mark.parametrize(
    ("optimizer", "bytes_a_parameter"),
    [
        (OptimizerSpec(), 8),
        (OptimizerSpec(name="sgd", momentum=0.9), 4),
        (OptimizerSpec(name="sgd"), 0),
    ],
)
def test_state_is_the_optimizers(optimizer: OptimizerSpec, bytes_a_parameter: int) -> None:
    model = model_profile(ModelSpec(preset="gpt2"), 1, 8, optimizer=optimizer)
    for x in model.layers:
        assert x.state_bytes * 4 == x.parameter_bytes * bytes_a_parameter


def test_a_jobs_profile_has_its_sizes_precision_and_vocabulary() -> None:
    job = JobSpec.model_validate(
        {
            "name": "x",
            "model": {"family": "gpt2", "layers": 2, "hidden": 8, "heads": 2},
            "data": {"files": ("a.txt",)},
            "sequence_length": 16,
            "global_batch": 4,
            "micro_batch": 2,
            "steps": 1,
            "precision": "bf16",
        }
    )
    with pytest.raises(ShapeError, match=r"model\.vocab: found none"):
        job_profile(job)
    model = job_profile(job, job.shape.model_copy(update={"vocab": 300}))
    assert (model.micro_batch, model.sequence_length) == (2, 16)
    assert [x.name for x in model.layers] == ["embedding", "block.00", "block.01", "head"]
    assert model.layers[0].parameter_bytes == 4 * 8 * (300 + 16)
    assert model.layers[0].boundary_bytes == 2 * 2 * 16 * 8
    assert [x.tied_to for x in model.layers] == ["", "", "", "embedding"]


def test_without_a_memory_bandwidth_seconds_are_flops_over_the_rate() -> None:
    model = model_profile(ModelSpec(preset="gpt2"), 1, 64)
    profile = device_profile(model, "d", 1e12)
    assert profile.device == "d"
    assert profile.forward_s == tuple(x.forward_flops / 1e12 for x in model.layers)
    assert profile.backward_s == tuple(x.backward_flops / 1e12 for x in model.layers)
    assert set(profile.optimizer_s) == {0.0}


def test_memory_bounds_the_layers_that_multiply_little() -> None:
    model = model_profile(ModelSpec(preset="gpt2"), 8, 1024)
    profile = device_profile(model, "d", 45e12, 900e9)
    embedding, block = model.layers[0], model.layers[1]
    assert profile.forward_s[0] == (embedding.saved_bytes + embedding.boundary_bytes) / 900e9
    assert profile.backward_s[0] == pytest.approx(
        2 * (embedding.parameter_bytes + embedding.saved_bytes + embedding.boundary_bytes) / 900e9
    )
    assert profile.forward_s[1] == block.forward_flops / 45e12
    # AdamW in float32: 28 bytes a parameter.
    assert profile.optimizer_s[1] == pytest.approx(7 * block.parameter_bytes / 900e9)


def test_weights_are_read_once_a_micro_batch_whatever_its_size() -> None:
    """On a device that only waits for memory the line through two sizes meets every other."""
    shape = ModelSpec(preset="gpt2")
    eight, two = (device_profile(model_profile(shape, b, 64), "d", 1e15, 1e9) for b in (8, 2))
    assert eight.scaled(0.25).forward_s == pytest.approx(two.forward_s)
    assert eight.scaled(0.25).backward_s == pytest.approx(two.backward_s)
    block = model_profile(shape, 8, 64).layers[1]
    assert eight.forward_fixed_s[1] == pytest.approx(block.parameter_bytes / 1e9)
    assert eight.backward_fixed_s[1] == pytest.approx(3 * block.parameter_bytes / 1e9)


def test_every_preset_takes_longer_on_a_slower_accelerator() -> None:
    for preset in PRESETS:
        shape = ModelSpec(preset=preset)
        model = model_profile(
            shape if shape.preset != "demo" else ModelSpec(preset="demo", vocab=256), 1, 512
        )
        slow, fast = (accelerator_profile(model, n, accelerator(n), "fp16") for n in ("t4", "h100"))
        for name in ("forward_s", "backward_s", "optimizer_s"):
            assert all(0 < f < s for f, s in zip(getattr(fast, name), getattr(slow, name), strict=True))


@pytest.mark.parametrize(("flops", "memory_Bps"), [(0.0, inf), (1e12, 0.0), (float("nan"), inf)])
def test_rates_that_cannot_be_are_refused(flops: float, memory_Bps: float) -> None:
    model = model_profile(ModelSpec(preset="gpt2"), 1, 8)
    with pytest.raises(ValueError, match="required more than 0"):
        device_profile(model, "d", flops, memory_Bps)

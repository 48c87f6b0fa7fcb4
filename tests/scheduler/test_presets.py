"""Presets: each is a model that can be, has its published size, and yields to explicit keys."""

from __future__ import annotations

import pytest

from scheduler.analytic import model_profile
from scheduler.job import ModelSpec
from scheduler.presets import PRESETS, resolve_model


def n_parameters(m: ModelSpec) -> int:
    """Weights of the resolved model, counted from the architectures' definitions."""
    assert m.vocab is not None
    assert m.ffn is not None
    assert m.kv_heads is not None
    h, head = m.hidden, m.hidden // m.heads
    embedding = m.vocab * h * (1 if m.tied else 2)
    if m.family == "gpt2":
        assert m.max_positions is not None
        block = 4 * h * h + 4 * h + 2 * h * m.ffn + m.ffn + h + 4 * h
        return embedding + m.max_positions * h + m.depth * block + 2 * h
    block = 2 * h * h + 2 * h * m.kv_heads * head + 3 * h * m.ffn + 2 * h
    return embedding + m.depth * block + h


@pytest.mark.parametrize(
    ("preset", "published"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
        ("gpt3-xl", 1_315_723_264),
        ("gpt3-xl-24", 1_315_723_264),
        ("llama-7b", 6_738_415_616),
        ("llama-13b", 13_015_864_320),
        ("llama-30b", 32_528_943_616),
        ("llama-70b", 68_976_648_192),
        ("llama3-8b", 8_030_261_248),
        ("llama3-70b", 70_553_706_496),
        ("smollm2-135m", 134_515_008),
    ],
)
def test_a_preset_has_the_published_number_of_parameters(preset: str, published: int) -> None:
    assert n_parameters(resolve_model(ModelSpec(preset=preset))) == published


@pytest.mark.parametrize("preset", list(PRESETS))
def test_every_preset_can_be(preset: str) -> None:
    m = resolve_model(ModelSpec(preset=preset))
    assert m.hidden % m.heads == 0
    assert m.kv_heads is not None
    assert m.heads % m.kv_heads == 0
    assert m.ffn is not None
    assert m.max_positions is not None
    assert resolve_model(m) == m


def test_explicit_keys_win_even_where_they_equal_the_default() -> None:
    default = ModelSpec()
    m = resolve_model(ModelSpec(preset="llama-7b", hidden=default.hidden, family="gpt2", tied=True))
    assert (m.hidden, m.family, m.tied) == (default.hidden, "gpt2", True)
    assert (m.layers, m.ffn) == (32, 11008)


def test_widths_follow_from_an_overridden_width() -> None:
    assert resolve_model(ModelSpec(preset="gpt2", hidden=96)).ffn == 384
    assert resolve_model(ModelSpec(family="llama", hidden=96)).ffn == 256
    assert resolve_model(ModelSpec(heads=2)).kv_heads == 2


def test_without_a_preset_the_defaults_hold() -> None:
    m = resolve_model(ModelSpec(layers=3))
    assert (m.layers, m.hidden, m.family, m.ffn, m.preset) == (3, 128, "gpt2", 512, None)


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(KeyError, match=r"gpt-2.*did you mean 'gpt2'"):
        resolve_model(ModelSpec(preset="gpt-2"))


def test_presets_of_other_layers_hold_about_what_their_names_say() -> None:
    for preset, blocks, millions in (("h3-125m", 12, 125), ("mamba2-130m", 24, 130)):
        shape = resolve_model(ModelSpec(preset=preset))
        assert shape.depth == blocks
        assert shape.vocab is not None
        layers = model_profile(shape, 1, 128).layers
        n = sum(x.parameter_bytes for x in layers) // 4 - shape.vocab * shape.hidden  # tied: once
        assert n == pytest.approx(millions * 1e6, rel=0.03)

"""Named model shapes, from the papers and configurations that define them. Data, and one merge.

Widths that follow from others (the MLP's, the number of key heads) are left out where the family's
default gives them, so that overriding `hidden` does not leave a stale width behind.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from scheduler.names import nearest
from scheduler.pattern import Layers, spelled_out

if TYPE_CHECKING:  # job.py imports this module; the merge needs only the instance it is given
    from scheduler.job import ModelSpec

Shape = Mapping[str, Any]


def _gpt2(layers: Layers, hidden: int, heads: int, max_positions: int = 1024, **more: Any) -> Shape:
    """Radford et al. 2019, table 2; vocabulary and positions as released."""
    return {
        "family": "gpt2",
        "layers": layers,
        "hidden": hidden,
        "heads": heads,
        "vocab": 50257,
        "max_positions": max_positions,
        "tied": True,
        "norm_eps": 1e-5,
        **more,
    }


def _llama(layers: Layers, hidden: int, heads: int, ffn: int, **more: Any) -> Shape:
    """Touvron et al. 2023 (LLaMA and Llama 2), configurations as released."""
    return {
        "family": "llama",
        "layers": layers,
        "hidden": hidden,
        "heads": heads,
        "ffn": ffn,
        "vocab": 32000,
        "max_positions": 4096,
        "tied": False,
        "norm_eps": 1e-5,
        "rope_theta": 10000.0,
        **more,
    }


def _llama3(layers: int, hidden: int, heads: int, ffn: int) -> Shape:
    """Llama 3 (Grattafiori et al. 2024, table 3)."""
    return _llama(
        layers, hidden, heads, ffn, kv_heads=8, vocab=128256, max_positions=8192, rope_theta=500000.0
    )


PRESETS: Mapping[str, Shape] = {
    # The demo's: byte-level (vocab from the tokenizer), small enough for a laptop's cores.
    "demo": {
        "family": "llama",
        "layers": 4,
        "hidden": 192,
        "heads": 6,
        "max_positions": 1024,
        "tied": True,
        "norm_eps": 1e-5,
        "rope_theta": 10000.0,
    },
    "gpt2": _gpt2(12, 768, 12),
    "gpt2-medium": _gpt2(24, 1024, 16),
    "gpt2-large": _gpt2(36, 1280, 20),
    "gpt2-xl": _gpt2(48, 1600, 25),
    # GPT-3 1.3B "XL" (Brown et al. 2020, table 2.1: 24 layers, width 2048, 128-wide heads made 16 here,
    # as 24 heads do not divide 2048) and DT-FM's deeper variants of it (section 4.1).
    "gpt3-xl": _gpt2(24, 2048, 16, 2048),
    "gpt3-xl-24": _gpt2(24, 2048, 16, 2048),
    "gpt3-xl-32": _gpt2(32, 2048, 16, 2048),
    "gpt3-xl-40": _gpt2(40, 2048, 16, 2048),
    "llama-7b": _llama(32, 4096, 32, 11008),
    "llama-13b": _llama(40, 5120, 40, 13824),
    "llama-30b": _llama(60, 6656, 52, 17920, max_positions=2048, norm_eps=1e-6),
    "llama-70b": _llama(80, 8192, 64, 28672, kv_heads=8),
    "llama3-8b": _llama3(32, 4096, 32, 14336),
    "llama3-70b": _llama3(80, 8192, 64, 28672),
    # Allal et al. 2024; config.json of the release.
    "smollm2-135m": _llama(
        30, 576, 9, 1536, kv_heads=3, vocab=49152, max_positions=8192, tied=True, rope_theta=100000.0
    ),
    # H3's 125M hybrid (Fu, Dao et al. 2023, section 5: attention in the second layer and the eighth).
    "h3-125m": _gpt2(
        (("h3", "mlp"), ("attention", "mlp"), "5 x [h3, mlp]", ("attention", "mlp"), "4 x [h3, mlp]"),
        768,
        12,
        2048,
    ),
    # The shape of Mamba-2's smallest release (Dao and Gu 2024): heads of width 64, no MLP.
    "mamba2-130m": _llama(
        ("24 x [ssd state=128 chunk=256]",),
        768,
        24,
        2048,
        vocab=50288,
        max_positions=2048,
        tied=True,
    ),
}
"""Preset name -> the ModelSpec keys it sets."""


def resolve_model(spec: ModelSpec) -> ModelSpec:
    """The shape that `spec` means: its preset's keys, overridden by the keys set explicitly.

    A number of layers over a preset of other blocks takes so many of them, from the first and round again.
    Also fills `kv_heads` (heads) and `ffn` (4 x hidden for gpt2; 8/3 x hidden rounded up to a
    multiple of 64 for llama). Idempotent. Raises KeyError, naming the nearest preset, for
    an unknown one; pydantic.ValidationError if the merged keys are out of range.
    """
    explicit = {key: getattr(spec, key) for key in spec.model_fields_set}
    preset: Shape = {}
    if spec.preset is not None:
        if spec.preset not in PRESETS:
            near = nearest(spec.preset, list(PRESETS))
            raise KeyError(f"the unknown preset {spec.preset!r}{near}")
        preset = PRESETS[spec.preset]
    pattern, n = preset.get("layers"), explicit.get("layers")
    if isinstance(pattern, tuple) and isinstance(n, int):
        blocks = spelled_out(pattern)
        explicit["layers"] = tuple(blocks[i % len(blocks)] for i in range(n))
    merged = type(spec)(**{**preset, **explicit})
    derived: dict[str, Any] = {}
    if merged.kv_heads is None:
        derived["kv_heads"] = merged.heads
    if merged.ffn is None:
        wide = 4 * merged.hidden
        derived["ffn"] = wide if merged.family == "gpt2" else -(-2 * wide // (3 * 64)) * 64
    return merged.model_copy(update=derived)

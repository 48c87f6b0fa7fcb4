"""The parts that a block can be made of: one module a family, each with its options and closed forms."""

from __future__ import annotations

from scheduler.mixers.attention import AttentionSpec, Sight
from scheduler.mixers.mlp import MlpSpec
from scheduler.mixers.spec import MixerSpec

__all__ = ["MIXERS", "AttentionSpec", "MixerSpec", "MlpSpec", "Sight"]

MIXERS: dict[str, type[MixerSpec]] = {spec.name: spec for spec in (AttentionSpec, MlpSpec)}
"""By the name that jobs use."""

"""The parts that a block can be made of: one module a family, each with its options and closed forms."""

from __future__ import annotations

from scheduler.mixers.attention import AttentionSpec, Sight
from scheduler.mixers.convolution import H3Spec, HyenaSpec, LongConvSpec, S4dSpec
from scheduler.mixers.delta import DeltaSpec, LogDeltaSpec
from scheduler.mixers.experts import ExpertsSpec
from scheduler.mixers.lssl import LsslSpec
from scheduler.mixers.mlp import MlpSpec
from scheduler.mixers.spec import MixerSpec
from scheduler.mixers.ssd import HydraSpec, LogSsdSpec, SsdSpec

__all__ = [
    "MIXERS",
    "AttentionSpec",
    "DeltaSpec",
    "ExpertsSpec",
    "H3Spec",
    "HydraSpec",
    "HyenaSpec",
    "LogDeltaSpec",
    "LogSsdSpec",
    "LongConvSpec",
    "LsslSpec",
    "MixerSpec",
    "MlpSpec",
    "S4dSpec",
    "Sight",
    "SsdSpec",
]

_KINDS: tuple[type[MixerSpec], ...] = (
    AttentionSpec,
    LsslSpec,
    S4dSpec,
    H3Spec,
    SsdSpec,
    LogSsdSpec,
    HydraSpec,
    DeltaSpec,
    LogDeltaSpec,
    LongConvSpec,
    HyenaSpec,
    MlpSpec,
    ExpertsSpec,
)
MIXERS: dict[str, type[MixerSpec]] = {kind.name: kind for kind in _KINDS}
"""By the name that jobs use."""

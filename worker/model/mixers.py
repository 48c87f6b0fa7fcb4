"""From a part's options to its module: the worker's half of `scheduler/mixers`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scheduler.job import ModelSpec
from scheduler.mixers import AttentionSpec, MixerSpec, MlpSpec
from worker.model.attention import Attention
from worker.model.mixer import Mixer
from worker.model.mlp import make_mlp

_MAKERS: dict[type[MixerSpec], Callable[[ModelSpec, Any], Mixer]] = {
    AttentionSpec: Attention,
    MlpSpec: make_mlp,
}


def make_mixer(model: ModelSpec, part: MixerSpec) -> Mixer:
    """The module of `part` in `model`, a resolved spec that `part` fits."""
    return _MAKERS[type(part)](model, part)

"""From a part's options to its module: the worker's half of `scheduler/mixers`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scheduler import mixers as specs
from scheduler.job import ModelSpec
from worker.model.attention import Attention
from worker.model.delta import Delta
from worker.model.experts import Experts
from worker.model.h3 import H3
from worker.model.hydra import Hydra
from worker.model.hyena import Hyena
from worker.model.log_delta import LogDelta
from worker.model.log_ssd import LogSsd
from worker.model.long_conv import LongConv
from worker.model.mixer import Mixer
from worker.model.mlp import make_mlp
from worker.model.s4d import Lssl, S4d
from worker.model.ssd import Ssd

MAKERS: dict[type[specs.MixerSpec], Callable[[ModelSpec, Any], Mixer]] = {
    specs.AttentionSpec: Attention,
    specs.LsslSpec: Lssl,
    specs.S4dSpec: S4d,
    specs.H3Spec: H3,
    specs.SsdSpec: Ssd,
    specs.LogSsdSpec: LogSsd,
    specs.HydraSpec: Hydra,
    specs.DeltaSpec: Delta,
    specs.LogDeltaSpec: LogDelta,
    specs.LongConvSpec: LongConv,
    specs.HyenaSpec: Hyena,
    specs.MlpSpec: make_mlp,
    specs.ExpertsSpec: Experts,
}


def make_mixer(model: ModelSpec, part: specs.MixerSpec) -> Mixer:
    """The module of `part` in `model`, a resolved spec that `part` fits."""
    return MAKERS[type(part)](model, part)

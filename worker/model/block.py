"""A block: for each of its parts, x + part(norm(x)). A transformer's parts are attention and an MLP."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor

from scheduler.job import ModelSpec
from scheduler.pattern import part_names
from worker.model.layer import Layer, ModelError, State
from worker.model.mixer import Mixer, SequenceMixer
from worker.model.mixers import make_mixer
from worker.model.parts import Norm, add_norm, make_norm
from worker.model.ring import Shard


class Block(Layer):
    """Block `number` (from 0) of `model`, a resolved spec. Its state is a tuple of its parts' states."""

    def __init__(self, model: ModelSpec, number: int) -> None:
        super().__init__(model, number + 1)
        self.name, self.width, self.adds = f"block.{number:02d}", model.hidden, model.parts
        self.specs = model.blocks[number]
        self.parts = tuple(part_names(self.specs))
        for name, part in zip(self.parts, self.specs, strict=True):
            self.add_module(f"{name}_norm", make_norm(model.family, model.hidden, model.norm_eps))
            self.add_module(name, make_mixer(model, part))

    def mixer_of(self, part: str) -> Mixer:
        mixer = self.get_submodule(part)
        assert isinstance(mixer, Mixer)
        return mixer

    def _norm_of(self, part: str) -> Norm:
        norm = self.get_submodule(f"{part}_norm")
        assert isinstance(norm, Norm)
        return norm

    def begin(self) -> State:
        return tuple(self.mixer_of(part).begin() for part in self.parts)

    def in_shard(self, shard: Shard) -> State:
        return tuple(self.mixer_of(part).in_shard(shard) for part in self.parts)

    def forward(
        self, x_BTD: Tensor, state: State = None, documents_BT: Tensor | None = None
    ) -> tuple[Tensor, State]:
        states, mixed = [], None
        for i, part in enumerate(self.parts):
            before, norm = None if state is None else state[i], self._norm_of(part)
            if mixed is None:
                normed = norm(x_BTD)
            else:
                x_BTD, normed = add_norm(x_BTD, mixed, norm)
            mixer = self.mixer_of(part)
            if documents_BT is None or not isinstance(mixer, SequenceMixer):
                mixed, after = mixer(normed, before)
            elif self.specs[i].keeps_documents_apart:
                mixed, after = mixer(normed, before, documents_BT)
            else:
                raise ModelError(
                    f"{self.name}: found documents that are kept apart, for {self.specs[i].text!r}; required"
                    " a part that does not go on from one to the next"
                )
            states.append(after)
        assert mixed is not None  # a block has a part
        return x_BTD + mixed, None if state is None else tuple(states)

    def initial(self, parameter: str, rng: torch.Generator) -> Tensor | None:
        part, _, rest = parameter.partition(".")
        return self.mixer_of(part).initial(rest, rng) if part in self.parts else None

    def initial_std(self, parameter: str) -> float:
        """0.02, and less for what is added to the residual stream so many times (Radford et al. 2019)."""
        part, _, rest = parameter.partition(".")
        adds = part in self.parts and rest == self.mixer_of(part).residual
        return 0.02 / sqrt(self.adds) if adds else 0.02

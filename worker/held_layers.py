"""What a worker keeps of the model between two plans: its layers as they are after some step.

They are the tensors of the stage that ran, not copies: nothing steps them any more. Kept until the next
plan's first step, because until then others may have to fetch them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from worker.optimizer import StageOptimizer
from worker.stage import Stage


@dataclass(frozen=True, slots=True)
class HeldLayer:
    """By name: the weights, and the optimizer's state (none before its first step)."""

    weights: Mapping[str, Tensor]
    state: Mapping[str, Tensor]


@dataclass(slots=True)
class HeldLayers:
    """Layers of the model by index, all as they are after `step` steps."""

    step: int
    layers: dict[int, HeldLayer] = field(default_factory=dict)

    def keep(self, stage: Stage, optimizer: StageOptimizer, first_layer: int) -> None:
        """All layers of a stage that stands at `step`."""
        for i in range(len(stage.layers)):
            self.keep_layer(stage, optimizer, i, first_layer + i)

    def keep_layer(self, stage: Stage, optimizer: StageOptimizer, i: int, layer: int) -> None:
        """The stage's i-th layer, which is the model's `layer`."""
        weights: dict[str, Tensor] = stage.layers[i].state_dict()
        self.layers[layer] = HeldLayer(weights, optimizer.layer_state(i))

    def of(self, layer: int, step: int) -> HeldLayer:
        """Raises NotHeld unless the layer is there as it is after `step` steps."""
        if self.step != step or layer not in self.layers:
            held = f"layers {sorted(self.layers)} after step {self.step}" if self.layers else "none"
            raise NotHeld(f"layer {layer} after step {step} is to be given; found {held}")
        return self.layers[layer]


class NotHeld(Exception):
    """A layer that the coordinator takes this worker to have, and that it has not."""

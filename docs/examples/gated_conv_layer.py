"""A part of a block of one's own: a short causal convolution with a gate."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from scheduler.job import ModelSpec, resolve_model
from scheduler.layer_cost import Cost, Sizes
from scheduler.mixers import MIXERS
from scheduler.mixers.spec import MixerSpec
from worker.model import build_layers, initialize
from worker.model.mixer import Mixer
from worker.model.mixers import MAKERS
from worker.model.parts import Linear
from worker.model.short_conv import ShortConv


# What a job can say of it, and what it costs: `scheduler/mixers`, without torch.
class GatedConvSpec(MixerSpec):
    """out(silu(gate(x)) x shift(value(x)))"""

    name: ClassVar[str] = "gated_conv"
    is_sequence: ClassVar[bool] = True

    taps: int = 4
    """Positions that a value is made of."""

    def cost(self, model: ModelSpec, sizes: Sizes) -> Cost:
        d = model.hidden
        linears = sizes.linear(d, 2 * d, bias=False, kept=4 * d) + sizes.linear(d, d, bias=False, kept=d)
        remembered = sizes.batch * (self.taps - 1) * d * sizes.value_bytes
        return linears + Cost(self.taps * d, 0.0, 0.0, 0, state_bytes=remembered)


# The module: `worker/model`. Parameters are blank until `initialize` or a checkpoint fills them.
class GatedConv(Mixer):
    def __init__(self, model: ModelSpec, options: GatedConvSpec) -> None:
        super().__init__()
        self.gate_value = Linear(model.hidden, 2 * model.hidden, bias=False)
        self.shift = ShortConv(options.taps, model.hidden)
        self.out = Linear(model.hidden, model.hidden, bias=False)

    def initial(self, parameter: str, rng: torch.Generator) -> Tensor | None:
        return self.shift.initial(rng) if parameter == "shift.weight" else None

    def begin(self) -> Tensor:
        return self.shift.begin()

    def forward(self, x_BTD: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        gate, value = self.gate_value(x_BTD).chunk(2, dim=-1)
        shifted, after = self.shift(value, state)
        return self.out(F.silu(gate) * shifted), None if state is None else after

    def dense(self, x_BTD: Tensor) -> Tensor:
        """From its definition, with every matrix whole: what `forward` is tested against."""
        gate, value = self.gate_value.dense(x_BTD).chunk(2, dim=-1)
        matrix_DTT = self.shift.to_dense(x_BTD.shape[1])
        return self.out.dense(gate * gate.sigmoid() * torch.einsum("dts,bsd->btd", matrix_DTT, value))


MIXERS["gated_conv"] = GatedConvSpec
MAKERS[GatedConvSpec] = GatedConv

model = resolve_model(
    ModelSpec(hidden=32, vocab=100, max_positions=64, layers=("2 x [gated_conv taps=3, mlp]",))
)
layers = build_layers(model, 0, model.depth + 2)
for index, layer in enumerate(layers):
    initialize(layer, seed=0, index=index)
    print(f"{layer.name:<10} {sum(p.numel() for p in layer.parameters()):>6} parameters")
mixer = next(m for m in layers[1].modules() if isinstance(m, GatedConv))
x = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(0))
torch.testing.assert_close(mixer(x)[0], mixer.dense(x))
print("forward is its dense form")

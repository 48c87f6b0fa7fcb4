"""A transformer block: x + mixer(norm(x)), then x + feed-forward(norm(x)). One class for both families.

The mixer is attention today; another one needs `begin`, `forward(x, state)`, a matrix named `out`, and
its closed forms in `scheduler/analytic.py`.
"""

from __future__ import annotations

from math import sqrt

from torch import Tensor

from scheduler.job import ModelSpec
from worker.model.attention import Attention
from worker.model.layer import Layer, State
from worker.model.parts import GatedMlp, Mlp, make_norm


class Block(Layer):
    """Block `number` (from 0) of `model`, a resolved spec."""

    def __init__(self, model: ModelSpec, number: int) -> None:
        super().__init__()
        assert model.kv_heads is not None
        assert model.ffn is not None
        gpt2 = model.family == "gpt2"
        self.name, self.width, self.depth = f"block.{number:02d}", model.hidden, model.layers
        self.mixer_norm = make_norm(model.family, model.hidden, model.norm_eps)
        self.mixer = Attention(
            model.hidden, model.heads, model.kv_heads, bias=gpt2, theta=None if gpt2 else model.rope_theta
        )
        self.ffn_norm = make_norm(model.family, model.hidden, model.norm_eps)
        self.ffn = (Mlp if gpt2 else GatedMlp)(model.hidden, model.ffn)

    def begin(self) -> State:
        return self.mixer.begin()

    def forward(self, x_BTD: Tensor, state: State = None) -> tuple[Tensor, State]:
        mixed, state = self.mixer(self.mixer_norm(x_BTD), state)
        x_BTD = x_BTD + mixed
        return x_BTD + self.ffn(self.ffn_norm(x_BTD)), state

    def initial_std(self, parameter: str) -> float:
        """0.02, and less for what is added to the residual stream 2 x depth times (Radford et al. 2019)."""
        adds = parameter in ("mixer.out.weight", "ffn.down.weight")
        return 0.02 / sqrt(2 * self.depth) if adds else 0.02

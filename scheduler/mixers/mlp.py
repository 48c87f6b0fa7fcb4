"""The feed-forward network's options and closed forms. Letters: D hidden, F inner width."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from scheduler.layer_cost import Cost, Sizes
from scheduler.mixers.spec import MixerSpec

if TYPE_CHECKING:
    from scheduler.job import ModelSpec


class MlpSpec(MixerSpec):
    """down(gelu(up(x))), or down(silu(gate(x)) x up(x)) (SwiGLU)."""

    name: ClassVar[str] = "mlp"
    is_sequence: ClassVar[bool] = False

    inner: Annotated[int, Field(ge=1)] | None = None
    """Default: the model's `ffn`."""
    activation: Literal["gelu", "swiglu"] | None = None
    """Default: the family's."""

    def inner_in(self, model: ModelSpec) -> int:
        inner = self.inner or model.ffn
        assert inner is not None
        return inner

    def gated_in(self, model: ModelSpec) -> bool:
        return (self.activation or ("gelu" if model.family == "gpt2" else "swiglu")) == "swiglu"

    def cost(self, model: ModelSpec, sizes: Sizes) -> Cost:
        """GELU keeps its input and output; SwiGLU gate and up, silu(gate), and the product. Biases are
        GELU's."""
        inner, gated = self.inner_in(model), self.gated_in(model)
        up = sizes.linear(
            model.hidden,
            2 * inner if gated else inner,
            not gated,
            kept=model.hidden + (4 if gated else 2) * inner,
        )
        return up + sizes.linear(inner, model.hidden, not gated, kept=0)

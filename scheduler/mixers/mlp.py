"""The feed-forward network's options and closed forms. Letters: D hidden, F inner width."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from scheduler.layer_cost import Cost, Sizes
from scheduler.mixers.spec import MixerSpec
from scheduler.mixers.structured import Kind, structured_cost, structured_misfits

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
    linear: Kind = "dense"
    """What the matrices are: dense, Monarch (Dao et al. 2022), or a flat block butterfly and a low rank."""
    blocks: Annotated[int, Field(ge=1)] = 8
    """A Monarch matrix has so many blocks a factor; a butterfly so many rows of blocks."""
    rank: Annotated[int, Field(ge=1)] = 16
    """Of Pixelfly's low-rank part."""

    def inner_in(self, model: ModelSpec) -> int:
        inner = self.inner or model.ffn
        assert inner is not None
        return inner

    def gated_in(self, model: ModelSpec) -> bool:
        return (self.activation or ("gelu" if model.family == "gpt2" else "swiglu")) == "swiglu"

    def shapes_in(self, model: ModelSpec) -> tuple[tuple[int, int], tuple[int, int]]:
        """(inputs, outputs) of the two matrices."""
        inner = self.inner_in(model)
        return (model.hidden, 2 * inner if self.gated_in(model) else inner), (inner, model.hidden)

    def misfits(self, model: ModelSpec) -> Iterator[tuple[str, str]]:
        for inputs, outputs in self.shapes_in(model):
            yield from structured_misfits(self.linear, inputs, outputs, self.blocks)

    def cost(self, model: ModelSpec, sizes: Sizes) -> Cost:
        """GELU keeps its input and output; SwiGLU gate and up, silu(gate), and the product. Biases are
        GELU's."""
        inner, gated = self.inner_in(model), self.gated_in(model)
        kept = sizes.rows * (model.hidden + (4 if gated else 2) * inner) * sizes.value_bytes
        up, down = (
            structured_cost(self.linear, sizes, *shape, not gated, self.blocks, self.rank)
            for shape in self.shapes_in(model)
        )
        return up + down + Cost(0, 0.0, 0.0, kept)

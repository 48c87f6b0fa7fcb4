"""Mixture of experts: options and closed forms. Letters: D hidden, F inner width of an expert."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from scheduler.layer_cost import TOKEN_BYTES, Cost, Sizes
from scheduler.mixers.spec import MixerSpec

if TYPE_CHECKING:
    from scheduler.job import ModelSpec


class ExpertsSpec(MixerSpec):
    """Several SwiGLU networks, of which each position takes the few that its router likes best (Shazeer et
    al. 2017), weighed by the softmax over those (Jiang et al. 2024, equation 2)."""

    name: ClassVar[str] = "experts"
    is_sequence: ClassVar[bool] = False

    experts: Annotated[int, Field(ge=1)] = 8
    top: Annotated[int, Field(ge=1)] = 2
    """Experts that a position takes."""
    inner: Annotated[int, Field(ge=1)] | None = None
    """Width of each; default: the model's `ffn` / top, so that a position costs what one network would."""

    def inner_in(self, model: ModelSpec) -> int:
        assert model.ffn is not None
        return self.inner or max(1, model.ffn // self.top)

    def misfits(self, model: ModelSpec) -> Iterator[tuple[str, str]]:
        del model
        if self.top > self.experts:
            yield f"top={self.top} of {self.experts} experts", "at most as many as there are"

    def cost(self, model: ModelSpec, sizes: Sizes) -> Cost:
        """Kept: the input; of each choice the inner values before their gate, its weight, the expert and
        the place in the experts' order."""
        d, inner = model.hidden, self.inner_in(model)
        router = sizes.linear(d, self.experts, bias=False, kept=d)
        forward = 6.0 * sizes.rows * self.top * d * inner
        n = 3 * self.experts * d * inner
        choice = (2 * inner + 2) * sizes.value_bytes + 2 * TOKEN_BYTES
        return router + Cost(
            n,
            forward,
            2 * forward,
            sizes.rows * self.top * choice,
            sizes.copies(n),
            forward / sizes.length,
        )

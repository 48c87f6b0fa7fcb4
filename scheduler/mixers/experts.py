"""Mixture of experts: options and closed forms. Letters: D hidden, F inner width of an expert."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from scheduler.layer_cost import FLOAT_BYTES, TOKEN_BYTES, Cost, Sizes
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

    tile: Annotated[int, Field(ge=0)] = 0
    """Rows of a tile of matrix products: while it trains, each expert's rows in a micro-batch are rounded
    to a multiple of it, by dropping or adding those that like it least or best (SonicMoE). 0: each position
    takes exactly `top`. With it a step's result depends on the micro-batch's size, and is for training alone:
    evaluation and generation take `top`."""
    kernel: Literal["auto", "torch", "triton"] = "auto"
    """Of the products of all experts' rows with their matrices. `torch`: PyTorch's grouped product; `triton`:
    this project's, in 64 rows a tile; `auto`: on a GPU PyTorch's where it takes bfloat16, else this project's
    in 16 bits; elsewhere a product an expert."""
    balance: Annotated[float, Field(ge=0)] = 0.0
    """How much an uneven use of the experts adds to the loss (Switch's load-balancing loss, of each sample);
    0.01 is usual. The loss that is reported is without it."""

    @property
    def undivided(self) -> str:
        return "looks at all positions of a sample" if self.balance or self.tile else ""

    def inner_in(self, model: ModelSpec) -> int:
        assert model.ffn is not None
        return self.inner or max(1, model.ffn // self.top)

    def misfits(self, model: ModelSpec) -> Iterator[tuple[str, str]]:
        if self.top > self.experts:
            yield f"top={self.top} of {self.experts} experts", "at most as many as there are"
        inner = self.inner_in(model)
        if self.kernel == "torch" and (model.hidden % 8 or inner % 8):
            yield (
                f"kernel=torch for hidden {model.hidden} and inner {inner}",
                "multiples of 8, or kernel=auto",
            )

    def misfits_of_rows(self, rows: int) -> Iterator[tuple[str, str]]:
        mean = rows * self.top // self.experts
        if 2 * self.tile > mean:
            yield (
                f"experts tile={self.tile} for micro-batches of {rows} positions, of which an expert takes"
                f" {mean} in the mean",
                f"a tile of at most {mean // 2}, a larger micro_batch (where it is auto, one sample counts),"
                " or tile=0: rounded to so few tiles, experts would lose or double what they take",
            )

    def cost(self, model: ModelSpec, sizes: Sizes) -> Cost:
        """Kept: the input; of each choice the inner values before their gate, its weight, the expert and
        the place in the experts' order. With `tile` the rows' weights for all experts instead of those of
        the choices, thrice; flops are then those of the mean, exact within a tile an expert. With `balance`
        the router's softmax."""
        d, inner = model.hidden, self.inner_in(model)
        router = sizes.linear(d, self.experts, bias=False, kept=d)
        forward = 6.0 * sizes.rows * self.top * d * inner
        n = 3 * self.experts * d * inner
        choice = (2 * inner + 2) * sizes.value_bytes + 2 * TOKEN_BYTES
        routed = sizes.rows * self.experts * (3 * sizes.value_bytes if self.tile else 0)
        routed += sizes.rows * self.experts * FLOAT_BYTES if self.balance else 0
        return router + Cost(
            n,
            forward,
            2 * forward,
            sizes.rows * self.top * choice + routed,
            sizes.copies(n),
            forward / sizes.length,
        )

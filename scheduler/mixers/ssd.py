"""Mamba-2's mixer: options and closed forms. Letters: B samples, T positions, H heads of width P, N values of
state a channel, Q positions of a chunk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from scheduler.layer_cost import FLOAT_BYTES, Cost, Sizes
from scheduler.mixers.log_linear import LogLinear
from scheduler.mixers.spec import MixerSpec

if TYPE_CHECKING:
    from scheduler.job import ModelSpec


class SsdSpec(MixerSpec):
    """State-space duality (Dao and Gu 2024): a state with a scalar decay a head, read and written by
    what each position chooses; between two projections, behind a short convolution and a gate."""

    name: ClassVar[str] = "ssd"
    is_sequence: ClassVar[bool] = True

    heads: Annotated[int, Field(ge=1)] | None = None
    """Default: the model's."""
    state: Annotated[int, Field(ge=1)] = 64
    expand: Annotated[int, Field(ge=1)] = 2
    """Inner width over hidden."""
    taps: Annotated[int, Field(ge=1)] = 4
    chunk: Annotated[int, Field(ge=1)] = 64

    @property
    def keeps_documents_apart(self) -> bool:
        return True

    def heads_in(self, model: ModelSpec) -> int:
        return self.heads or model.heads

    def inner_in(self, model: ModelSpec) -> int:
        return self.expand * model.hidden

    def misfits(self, model: ModelSpec) -> Iterator[tuple[str, str]]:
        inner, heads = self.inner_in(model), self.heads_in(model)
        if inner % heads:
            yield f"{heads} heads for an inner width of {inner}", "a number of heads that divides it"

    def cost(self, model: ModelSpec, sizes: Sizes) -> Cost:
        """Kept: the input, its projection, what the convolution and the core are given, and what gate, norm
        and last projection are. The core's products are done again in backward but for the last."""
        inner, heads = self.inner_in(model), self.heads_in(model)
        read = inner + 2 * self.state
        joint = inner + read + heads
        # Input; projection; convolved before and after SiLU; steps before and after softplus; gated thrice.
        kept = model.hidden + joint + 3 * read + heads + 5 * inner
        core, last = self.core_flops(sizes.batch, sizes.length, inner)
        step, _ = self.core_flops(sizes.batch, 1, inner, remembers=True)
        convolved = self.taps * read
        state = sizes.batch * (self.state * inner + (self.taps - 1) * read) * sizes.value_bytes
        cost = sizes.linear(model.hidden, joint, bias=False, kept=kept)
        cost += sizes.linear(inner, model.hidden, bias=False, kept=0)
        return cost + Cost(
            convolved + 3 * heads + inner,
            core,
            2 * core + core - last,
            sizes.rows * FLOAT_BYTES,  # the norm's
            # Scores and decays of all heads.
            3 * sizes.rows * min(self.chunk, sizes.length) * heads * sizes.value_bytes,
            step_flops=step,
            state_bytes=state,
        )

    def core_flops(self, batch: int, length: int, inner: int, remembers: bool = False) -> tuple[float, float]:
        """Of the chunked form (listing 1 of the paper), and of these the last product's: within a chunk
        Q x Q scores and what they weigh; where there are several, each chunk's state and what
        is read of it."""
        size = min(self.chunk, length)
        rows = batch * -(-length // size) * size
        weighed = 2.0 * rows * size * inner
        carried = 4.0 * rows * self.state * inner if remembers or length > size else 0.0
        return 2.0 * rows * size * self.state + weighed + carried, weighed


class LogSsdSpec(LogLinear, SsdSpec):
    """Log-linear attention over SSD's states (Guo et al. 2025): a state for each level of Fenwick's tree over
    the positions, and weights for them that each position chooses."""

    name: ClassVar[str] = "log_ssd"

    @property
    def keeps_documents_apart(self) -> bool:
        return False

    def misfits(self, model: ModelSpec) -> Iterator[tuple[str, str]]:
        yield from super().misfits(model)
        if self.chunk & (self.chunk - 1):
            yield f"chunks of {self.chunk} positions in a tree", "a power of two"

    def cost(self, model: ModelSpec, sizes: Sizes) -> Cost:
        """SSD's and the levels'; and a tree over the chunks, half of which read at each level."""
        inner = self.inner_in(model)
        plain = super().cost(model, sizes)
        levels = self.levels_cost(model, sizes, self.heads_in(model), self.state * inner)
        size = min(self.chunk, sizes.length)
        n = -(-sizes.length // size)
        carried = 4.0 * sizes.batch * n * size * self.state * inner if n > 1 else 0.0
        added = carried / 2
        depth = (n - 1).bit_length()
        climbed = float(depth * sizes.batch * (1 << depth) * size * self.state * inner)
        last = 2.0 * sizes.batch * n * size * size * inner
        more = added + climbed - carried
        step, _ = self.core_flops(sizes.batch, 1, inner, remembers=True)
        read = 2.0 * sizes.batch * (self.levels_in(model) - 1) * self.state * inner
        return (
            plain
            + levels
            + Cost(
                0,
                more,
                3 * more + (last if n > 1 else 0.0),
                0,
                sizes.batch * 2 * n * self.state * inner * sizes.value_bytes,
                read - step,
            )
        )


class HydraSpec(SsdSpec):
    """SSD in both directions (Hwang, Lahoti, Dao and Gu 2024), for what is not trained on the next token."""

    name: ClassVar[str] = "hydra"

    @property
    def is_causal(self) -> bool:
        return False

    @property
    def keeps_documents_apart(self) -> bool:
        return False

    def cost(self, model: ModelSpec, sizes: Sizes) -> Cost:
        """Two of SSD's cores; kept is what SSD keeps, and for the second core its inputs turned round."""
        inner, heads = self.inner_in(model), self.heads_in(model)
        read = inner + 4 * self.state
        joint = inner + read + 2 * heads
        kept = model.hidden + joint + 3 * read + 4 * heads + 5 * inner + inner + 2 * self.state
        core, last = self.core_flops(sizes.batch, sizes.length, inner)
        cost = sizes.linear(model.hidden, joint, bias=False, kept=kept)
        cost += sizes.linear(inner, model.hidden, bias=False, kept=0)
        return cost + Cost(
            self.taps * read + 5 * heads + inner,
            2 * core,
            2 * (3 * core - last),
            sizes.rows * FLOAT_BYTES,
            3 * sizes.rows * min(self.chunk, sizes.length) * heads * sizes.value_bytes,
        )

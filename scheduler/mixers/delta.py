"""Gated DeltaNet, plain and log-linear: options and closed forms. Letters: B samples, T positions, H heads,
N width of a key, P width of a value, Q positions of a chunk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from scheduler.layer_cost import FLOAT_BYTES, Cost, Sizes
from scheduler.mixers.log_linear import LogLinear
from scheduler.mixers.spec import MixerSpec

if TYPE_CHECKING:
    from scheduler.job import ModelSpec


class DeltaSpec(MixerSpec):
    """Gated delta rule (Yang, Kautz and Hatamizadeh 2025): a state that fades, and from which what a key
    finds is taken before its value is written."""

    name: ClassVar[str] = "delta"
    is_sequence: ClassVar[bool] = True

    heads: Annotated[int, Field(ge=1)] | None = None
    """Default: the model's."""
    key: Annotated[int, Field(ge=1)] | None = None
    """Width of a head's keys; default: hidden / heads, as that of values."""
    taps: Annotated[int, Field(ge=1)] = 4
    chunk: Annotated[int, Field(ge=1)] = 32

    @property
    def keeps_documents_apart(self) -> bool:
        return True

    def heads_in(self, model: ModelSpec) -> int:
        return self.heads or model.heads

    def key_in(self, model: ModelSpec) -> int:
        return self.key or model.hidden // self.heads_in(model)

    def misfits(self, model: ModelSpec) -> Iterator[tuple[str, str]]:
        heads = self.heads_in(model)
        if model.hidden % heads:
            yield f"{heads} heads for hidden {model.hidden}", "a number of heads that divides hidden"
        if self.chunk & (self.chunk - 1):
            yield f"chunks of {self.chunk} positions", "a power of two"

    def _widths(self, model: ModelSpec) -> tuple[int, int]:
        """Of queries, keys and values together; and of the whole projection."""
        heads = self.heads_in(model)
        qkv = 2 * heads * self.key_in(model) + model.hidden
        return qkv, qkv + model.hidden + 2 * heads

    def cost(self, model: ModelSpec, sizes: Sizes) -> Cost:
        """Kept: the input, its projection, q, k and v padded, convolved and behind SiLU, q and k at length
        1, strengths and decays, and what norm, gate and last projection are."""
        d, heads = model.hidden, self.heads_in(model)
        qkv, joint = self._widths(model)
        kept = d + joint + 3 * qkv + 2 * heads * self.key_in(model) + 10 * heads + 5 * d
        forward, last = self.core_flops(model, sizes.batch, sizes.length)
        cost = sizes.linear(d, joint, bias=False, kept=kept) + sizes.linear(d, d, bias=False, kept=0)
        state = sizes.batch * (self.key_in(model) * d + (self.taps - 1) * qkv) * sizes.value_bytes
        squares = sizes.rows * min(self.chunk, sizes.length) * heads
        return cost + Cost(
            self.taps * qkv + 2 * heads + d // heads,
            forward,
            3 * forward - last,
            sizes.rows * heads * FLOAT_BYTES,
            6 * squares * sizes.value_bytes,
            step_flops=self.step_flops(model, sizes.batch),
            state_bytes=state,
        )

    def core_flops(self, model: ModelSpec, batch: int, length: int) -> tuple[float, float]:
        """Of the chunked form (section 3.3), and of these the last product's, which backward does not redo.

        A chunk: keys with keys and with queries; the inverse of a unit triangle by squaring (two products of
        Q x Q a doubling of Q, but for the first); queries through it, and values through that. Where there
        are several chunks: `_between`.
        """
        n, size = self._chunks(length)
        heads, key = self.heads_in(model), self.key_in(model)
        one = 2.0 * batch * n * size * size * heads
        values = one * (model.hidden // heads)
        squares = 2 * max(0, (size - 1).bit_length() - 1) + 1
        inside = one * (2 * key + squares * size) + values
        return inside + (self._between(model, batch, n, size) if n > 1 else 0.0), values

    def _between(self, model: ModelSpec, batch: int, n: int, size: int) -> float:
        """The triangle's inverse with keys and values, and queries with the first; each chunk's writing and,
        of more than two, its transition (N x N); what is read of the state before; and all but the first
        and the last chunk's transitions of a state."""
        heads, key = self.heads_in(model), self.key_in(model)
        one = 2.0 * batch * heads
        width = model.hidden // heads
        chunk = size * size * (2 * key + width) + size * key * width
        transition = size * key * key if n > 2 else 0
        return one * (n * (chunk + transition) + self._carried(n, size, key, width))

    def _carried(self, n: int, size: int, key: int, width: int) -> int:
        return n * size * key * width + max(0, n - 2) * key * key * width

    def _chunks(self, length: int) -> tuple[int, int]:
        size = min(self.chunk, length)
        return -(-length // size), size

    def step_flops(self, model: ModelSpec, batch: int) -> float:
        """What a key finds, and what a query reads."""
        return 4.0 * batch * self.key_in(model) * model.hidden


class LogDeltaSpec(LogLinear, DeltaSpec):
    """Log-linear attention over the gated delta rule's states (Guo et al. 2025)."""

    name: ClassVar[str] = "log_delta"

    @property
    def keeps_documents_apart(self) -> bool:
        return False

    def cost(self, model: ModelSpec, sizes: Sizes) -> Cost:
        """The plain rule's and the levels'."""
        values = self.key_in(model) * model.hidden
        return super().cost(model, sizes) + self.levels_cost(model, sizes, self.heads_in(model), values)

    def _chunks(self, length: int) -> tuple[int, int]:
        """A whole tree of them."""
        n, size = super()._chunks(length)
        return 1 << (n - 1).bit_length(), size

    def _carried(self, n: int, size: int, key: int, width: int) -> int:
        """At each level half of the chunks read, and take the state further, but for the very last."""
        halves = n // 2 * (n - 1).bit_length()
        return halves * size * key * width + (halves - 1) * key * key * width

    def step_flops(self, model: ModelSpec, batch: int) -> float:
        return super().step_flops(model, batch) * (self.levels_in(model) - 1)

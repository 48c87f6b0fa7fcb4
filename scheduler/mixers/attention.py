"""Attention's options, which pairs of positions it looks at, and its closed forms.

Letters: B samples, T positions, D hidden, H heads, K key-value heads, C the width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from scheduler.layer_cost import FLOAT_BYTES, Cost, Keys, Sizes
from scheduler.mixers.spec import MixerSpec

if TYPE_CHECKING:
    from scheduler.job import ModelSpec


TILE = 64
"""Positions of a tile of `kernel=triton`."""


@dataclass(frozen=True, slots=True)
class Sight:
    """Which earlier (or, unless `causal`, later) positions a position sees."""

    causal: bool = True
    window: int | None = None
    """A position sees those fewer than `window` away, itself included."""
    butterfly: int | None = None
    """Size of blocks; block i sees blocks 0, i and, for each k, i XOR 2^k: the flat butterfly of
    Pixelated Butterfly (Dao et al. 2022, section 3.2) with its global block."""

    @property
    def block(self) -> int | None:
        """Size of the blocks in which it is computed; None: every pair is."""
        return self.butterfly or self.window

    def key_blocks(self, n: int) -> tuple[tuple[int, ...], ...]:
        """Blocks of keys that each of `n` blocks of queries reads, all rows as long as the longest: -1
        stands for none."""
        rows = [tuple(self._seen_by(i, n)) for i in range(n)]
        longest = max(map(len, rows))
        return tuple((-1,) * (longest - len(row)) + row for row in rows)

    def _seen_by(self, i: int, n: int) -> list[int]:
        if self.butterfly is None:
            seen = {i - 1, i, i + 1}
        else:
            seen = {0, i, *(i ^ (1 << k) for k in range(n.bit_length()))}
        return sorted(j for j in seen if 0 <= j < n and (j <= i or not self.causal))

    def blocks_of(self, length: int) -> int | None:
        """In how many blocks `length` positions are computed; None: as one, where blocks save nothing."""
        if self.block is None:
            return None
        n = -(-length // self.block)
        return n if n > len(self.key_blocks(n)[0]) else None

    def pairs_in_tiles(self, length: int) -> int:
        """Pairs of positions in the tiles of `kernel=triton` that hold a pair in the window."""
        tiles = 0
        for first in range(0, length, TILE):
            begin = max(0, first - (self.window or length) + 1) // TILE * TILE
            end = min(length, first + TILE + (0 if self.causal else (self.window or length) - 1))
            tiles += -(-(end - begin) // TILE)
        return tiles * TILE**2

    def pairs(self, length: int) -> int:
        """Pairs of positions that are multiplied among `length`."""
        n = self.blocks_of(length)
        if n is None or self.block is None:
            return length**2
        return n * len(self.key_blocks(n)[0]) * self.block**2


class AttentionSpec(MixerSpec):
    """softmax(q k^T / sqrt(C)) v: multi-head, grouped-query or single-query."""

    name: ClassVar[str] = "attention"
    is_sequence: ClassVar[bool] = True

    heads: Annotated[int, Field(ge=1)] | None = None
    kv_heads: Annotated[int, Field(ge=1)] | None = None
    """Default: the model's; where `heads` is given, as many."""
    causal: bool = True
    window: Annotated[int, Field(ge=1)] | None = None
    butterfly: Annotated[int, Field(ge=1)] | None = None
    positions: Literal["rotary", "none"] | None = None
    """Default: the family's; gpt2 learns its own in the embedding."""
    kernel: Literal["auto", "triton"] = "auto"
    """`auto`: flash-attn where it is installed and suits, else PyTorch's. `triton`: this project's own."""

    @property
    def is_causal(self) -> bool:
        return self.causal

    @property
    def keeps_documents_apart(self) -> bool:
        """Not in a butterfly, whose blocks count from the sample's begin."""
        return self.butterfly is None

    @property
    def sight(self) -> Sight:
        return Sight(self.causal, self.window, self.butterfly)

    @property
    def undivided(self) -> str:
        if not self.causal:
            return "sees later positions"
        if self.butterfly:
            return "sees a butterfly of blocks"
        return "asks for one kernel over all positions" if self.kernel != "auto" else ""

    def heads_in(self, model: ModelSpec) -> tuple[int, int]:
        """H and K."""
        heads = self.heads or model.heads
        own = None if self.heads else model.kv_heads
        return heads, self.kv_heads or own or heads

    def rotates_in(self, model: ModelSpec) -> bool:
        return (self.positions or ("none" if model.family == "gpt2" else "rotary")) == "rotary"

    def misfits(self, model: ModelSpec) -> Iterator[tuple[str, str]]:
        heads, kv_heads = self.heads_in(model)
        if model.hidden % heads:
            yield f"{heads} heads for hidden {model.hidden}", "a number of heads that divides hidden"
        elif self.rotates_in(model) and (model.hidden // heads) % 2:
            yield (
                f"heads of width {model.hidden // heads} (hidden {model.hidden} / {heads})",
                "an even width, because rotary positions turn pairs",
            )
        if heads % kv_heads:
            yield f"{kv_heads} key-value heads for {heads} heads", "a number that divides heads"
        if self.window and self.butterfly:
            yield "both window and butterfly", "one of them"
        width = model.hidden // heads
        if self.kernel == "triton" and (self.butterfly or width < 16 or width & (width - 1)):
            yield (
                f"kernel=triton for {'a butterfly' if self.butterfly else f'heads of width {width}'}",
                "heads of a width that is a power of two and 16 at least, and no butterfly",
            )

    def cost(self, model: ModelSpec, sizes: Sizes) -> Cost:
        """Backward has five products of pairs for forward's two, because the scores are computed again.

        Kept: the input, queries, keys and values, the output, a float32 a head and position. Where
        positions are rotated, values keep alive the whole product they are a view of. Computed in blocks,
        they are gathered first: queries, keys, values and the output are copies; the mask is a value a pair.
        Of documents apart queries, keys and values are kept, and forward's products made again, but by the
        project's kernel, which needs no mask. That kernel gathers nothing. In a window it multiplies the
        tiles that hold a pair in it, and in backward makes scores and their gradients twice: seven products.
        """
        heads, kv_heads = self.heads_in(model)
        head_width = model.hidden // heads
        joint = (heads + 2 * kv_heads) * head_width
        bias = model.family == "gpt2"
        rotated = (heads + kv_heads) * head_width if self.rotates_in(model) else 0
        masked, in_tiles = self._masks(sizes), self.kernel == "triton" and self.window is not None
        if self.kernel == "triton":  # the output is kept as it is made and as the last product takes it
            kept = 3 * model.hidden + joint
        else:
            whole = masked or self.sight.blocks_of(sizes.length) is None
            kept = 2 * model.hidden + (joint + rotated if whole else 0)
        linears = sizes.linear(model.hidden, joint, bias, kept=kept)
        linears += sizes.linear(model.hidden, model.hidden, bias, kept=0)
        n_pairs = (self.sight.pairs_in_tiles if in_tiles else self.sight.pairs)(sizes.length)
        pairs = 4.0 * sizes.batch * n_pairs * model.hidden
        pairs_kept = self._kept_of_pairs(sizes, model.hidden, heads, kv_heads)
        seen = min(sizes.length + 1, self.window or sizes.length + 1)
        held = min(sizes.length, self.window - 1) if self.window else sizes.length
        return linears + Cost(
            0,
            pairs,
            (3.5 if masked or in_tiles else 2.5) * pairs,
            0 if masked else pairs_kept,
            pairs_kept if masked else 0,
            step_flops=4.0 * sizes.batch * seen * model.hidden,
            state_bytes=2 * sizes.batch * held * kv_heads * head_width * sizes.value_bytes,
            pair_flops=pairs if self.sight.block is None else 0.0,
            keys=(Keys(2 * sizes.rows * kv_heads * head_width * sizes.value_bytes, self.window or 0),),
        )

    def _masks(self, sizes: Sizes) -> bool:
        """Whether a mask of pairs keeps documents apart."""
        return sizes.documents_apart and self.kernel == "auto"

    def _kept_of_pairs(self, sizes: Sizes, hidden: int, heads: int, kv_heads: int) -> int:
        """What the product of pairs keeps beside queries, keys, values and output as they are."""
        n, block = self.sight.blocks_of(sizes.length), self.sight.block
        if self.kernel == "triton":
            return sizes.rows * heads * FLOAT_BYTES
        if n is None or block is None:
            masks = sizes.batch if self._masks(sizes) else int(block is not None and sizes.length > 1)
            return sizes.rows * heads * FLOAT_BYTES + masks * sizes.length**2 * sizes.value_bytes
        rows, keys = sizes.batch * n * block, len(self.sight.key_blocks(n)[0]) * block
        gathered = 2 * hidden + 2 * keys // block * kv_heads * (hidden // heads)
        return rows * ((gathered + keys) * sizes.value_bytes + heads * FLOAT_BYTES)

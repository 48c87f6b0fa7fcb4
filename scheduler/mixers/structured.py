"""Linear maps with fewer parameters than inputs x outputs: options and closed forms.

They stand where a dense matrix would, and shrink its gradient's traffic as they shrink it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from scheduler.layer_cost import Cost, Sizes

Kind = Literal["dense", "monarch", "pixelfly"]


def butterfly_rows(blocks: int) -> tuple[tuple[int, ...], ...]:
    """Column blocks of each row of blocks: i and i XOR 2^k, the flat block butterfly (Pixelated Butterfly,
    Dao et al. 2022, definition 3.4)."""
    return tuple(
        (i, *(j for k in range(blocks.bit_length()) if (j := i ^ (1 << k)) < blocks)) for i in range(blocks)
    )


def structured_cost(
    kind: Kind, sizes: Sizes, inputs: int, outputs: int, bias: bool, blocks: int, rank: int
) -> Cost:
    """Of a map of `kind`, beside its input, which whoever calls has kept. Monarch keeps what is between its
    two factors; Pixelfly what is between the low-rank ones, and both sums."""
    if kind == "dense":
        return sizes.linear(inputs, outputs, bias, kept=0)
    biases = Cost(outputs if bias else 0, 0.0, 0.0, 0)
    if kind == "monarch":
        first = Cost(0, 2.0 * sizes.rows * inputs * blocks, 4.0 * sizes.rows * inputs * blocks, 0)
        second = Cost(0, 2.0 * sizes.rows * outputs * blocks, 4.0 * sizes.rows * outputs * blocks, 0)
        n = blocks * (inputs + outputs)
        step = 2.0 * sizes.batch * n
        kept = sizes.rows * blocks**2 * sizes.value_bytes
        return biases + first + second + Cost(n, 0.0, 0.0, kept, sizes.copies(n), step)
    read = blocks.bit_length()
    n = read * inputs * outputs // blocks + rank * (inputs + outputs)
    forward = 2.0 * sizes.rows * n
    kept = sizes.rows * (rank + 2 * outputs) * sizes.value_bytes
    return biases + Cost(n + 1, forward, 2 * forward, kept, sizes.copies(n), 2.0 * sizes.batch * n)


def structured_misfits(kind: Kind, inputs: int, outputs: int, blocks: int) -> Iterator[tuple[str, str]]:
    """Blocks must divide both sides; a butterfly's are a power of two."""
    if kind != "dense" and (inputs % blocks or outputs % blocks):
        yield f"{blocks} blocks for a matrix of {outputs} x {inputs}", "a number that divides both sides"
    if kind == "pixelfly" and blocks & (blocks - 1):
        yield f"{blocks} blocks for a butterfly", "a power of two"

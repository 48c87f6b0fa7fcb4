# mypy: disable-error-code="no-untyped-call, no-untyped-def, untyped-decorator, name-defined"
"""AdamW over a flat shard in one pass: the twin of `worker.adamw.adamw`.

Each value of weight, gradient and moments is read once, and each of the three that change written once.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from worker.adamw import Rates

TILE = 1024
"""Values of a program."""


def adamw(weight_N: Tensor, gradient_N: Tensor, mean_N: Tensor, square_N: Tensor, rates: Rates) -> None:
    """As `worker.adamw.adamw`: changes weight and moments in place. All of them contiguous."""
    n = weight_N.numel()
    _step[(triton.cdiv(n, TILE),)](weight_N, gradient_N, mean_N, square_N, *rates, n, TILE)


@triton.jit
def _step(
    weight, gradient, mean, square, kept, beta1, beta2, new1, new2, step_size, root_of_square, eps, n,
    TILE: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    good = at < n
    w = tl.load(weight + at, mask=good, other=0.0).to(tl.float32)
    g = tl.load(gradient + at, mask=good, other=0.0).to(tl.float32)
    m = beta1 * tl.load(mean + at, mask=good, other=0.0) + new1 * g
    v = beta2 * tl.load(square + at, mask=good, other=0.0) + new2 * g * g
    w = w * kept - step_size * (m / (tl.sqrt_rn(v) / root_of_square + eps))
    tl.store(mean + at, m, mask=good)
    tl.store(square + at, v, mask=good)
    tl.store(weight + at, w.to(weight.dtype.element_ty), mask=good)

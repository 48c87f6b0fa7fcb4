"""Recurrences against others' code: flash-linear-attention's references in plain PyTorch, written without
ours. Its kernels, and liger-kernel's, need a GPU: CONTRIBUTING.md says what was tried without one.

Skipped without the package (`pip install -e .[oracles]`), which nothing else here needs.

Shapes: as in `worker/model/ssd.py` and `delta.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from worker.model.delta import delta
from worker.model.log_ssd import log_ssd
from worker.model.ssd import ssd

BATCH, HEADS, STATE, WIDTH, LEVELS = 2, 3, 4, 5, 7
LENGTHS = (1, 8, 37, 64)


def theirs(module: str, function: str) -> Callable[..., Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no GPU
        found = pytest.importorskip(
            f"fla.ops.{module}.naive", reason="fla-core is not here: pip install -e .[oracles]"
        )
    result: Callable[..., Any] = getattr(found, function)
    return result


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def same(found: Tensor, expected: Tensor, inputs: Sequence[Tensor]) -> None:
    """Values and gradients in float32, which is what theirs compute in."""
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    g = drawn(*found.shape, seed=99).detach()
    pairs = zip(
        *(torch.autograd.grad(y, inputs, g, retain_graph=True) for y in (found, expected)), strict=True
    )
    for ours, other in pairs:
        torch.testing.assert_close(ours, other, atol=1e-4, rtol=1e-3)


def state_space(length: int) -> tuple[list[Tensor], Any, Any]:
    """What gradients are asked for; x, B, C, steps and decays; and queries, keys, values and log-decays."""
    x, b, c = (drawn(BATCH, length, *s, seed=i) for i, s in enumerate([(HEADS, WIDTH), (STATE,), (STATE,)]))
    raw, decay = drawn(BATCH, length, HEADS, seed=3), drawn(HEADS, seed=4)
    step, rate = F.softplus(raw), -decay.exp()
    q, k = (z[:, :, None].expand(-1, -1, HEADS, -1) for z in (c, b))
    return [x, b, c, raw, decay], (x, b, c, step, rate), (q, k, x * step[..., None], step * rate)


@pytest.mark.parametrize("length", LENGTHS)
def test_ssd_is_linear_attention_with_a_scalar_gate(length: int) -> None:
    reference = theirs("simple_gla", "naive_recurrent_simple_gla")
    inputs, ours, others = state_space(length)
    x, b, c, step, rate = ours
    same(ssd(x, b, c, step, rate, 8)[0], reference(*others, scale=1.0)[0], inputs)


@pytest.mark.parametrize("length", LENGTHS)
def test_log_linear_attention_over_ssd(length: int) -> None:
    reference = theirs("log_linear_attn", "naive_log_linear_attn")
    inputs, ours, others = state_space(length)
    weights = drawn(BATCH, length, HEADS, LEVELS, seed=5)
    x, b, c, step, rate = ours
    same(log_ssd(x, b, c, step, rate, weights, 8), reference(*others, weights), [*inputs, weights])


@pytest.mark.parametrize("length", LENGTHS)
def test_the_gated_delta_rule(length: int) -> None:
    reference = theirs("gated_delta_rule", "naive_recurrent_gated_delta_rule")
    raw = [drawn(BATCH, length, HEADS, n, seed=i) for i, n in enumerate((STATE, STATE, WIDTH))]
    strengths, fades = (drawn(BATCH, length, HEADS, seed=i) for i in (3, 4))
    q, k, v = F.normalize(raw[0], dim=-1), F.normalize(raw[1], dim=-1), raw[2]
    strength, fading = strengths.sigmoid(), -F.softplus(fades)
    first, second, third = (x.transpose(1, 2) for x in (q, k, v))
    found = delta(first, second, third, strength.mT, fading.mT, 8).transpose(1, 2)
    same(found, reference(q, k, v, strength, fading, scale=1.0)[0], [*raw, strengths, fades])

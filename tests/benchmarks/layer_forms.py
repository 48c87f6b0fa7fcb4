"""The forms of parts that `layers.py` measures: the project's own, torch's, and naive ones."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from scheduler.job import ModelSpec, resolve_model
from worker.model import Block, build_layer, initialize
from worker.model.fft_conv import fft_conv

HIDDEN, HEADS = 64, 2
LENGTHS = tuple(512 << k for k in range(8))
ATTENTION, WINDOW, BUTTERFLY = "attention", "attention window=128", "attention butterfly=128"
PARTS = (
    ATTENTION,
    WINDOW,
    BUTTERFLY,
    "h3",
    "s4d",
    "lssl state=16",
    "ssd",
    "log_ssd",
    "delta",
    "log_delta",
    "longconv",
    "hyena",
    "hyena transform=matrix",
    "mlp",
    "mlp linear=monarch",
    "mlp linear=pixelfly",
    "experts",
)
FUSED, NAIVE = "torch's fused attention, alone", "attention, scores whole, alone"
FAST_CONV, WHOLE_CONV = "convolution by Fourier transforms, alone", "convolution as a whole matrix, alone"
STEPS = {f"{part} step by step": part for part in ("h3", "ssd", "delta")}
NAIVELY = {NAIVE, WHOLE_CONV, *STEPS}
FORMS = (*PARTS, FUSED, NAIVE, FAST_CONV, WHOLE_CONV, *STEPS)
"""Every row."""


def heads_of(x_BTD: Tensor) -> Tensor:
    heads: Tensor = x_BTD.unflatten(-1, (HEADS, -1)).transpose(1, 2)  # type: ignore[no-untyped-call]
    return heads


def naive(x_BTD: Tensor) -> Tensor:
    """Causal attention of all heads with its scores written down, between no projections."""
    q = heads_of(x_BTD)
    scores = q @ q.mT / sqrt(HIDDEN // HEADS)
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(later, -torch.inf).softmax(-1) @ q


def fused(x_BTD: Tensor) -> Tensor:
    q = heads_of(x_BTD)
    return F.scaled_dot_product_attention(q, q, q, is_causal=True)


def fading(length: int) -> Tensor:
    """Filters for all channels, (D,T), learned."""
    return (-torch.arange(length) / length).exp().repeat(HIDDEN, 1).requires_grad_()


def by_a_matrix(x_BTD: Tensor) -> Tensor:
    """The same convolution with the matrix (D,T,T) of each channel whole."""
    at = torch.arange(x_BTD.shape[1])
    back = at[:, None] - at
    matrices = fading(len(at))[:, back.clamp(min=0)].masked_fill(back < 0, 0.0)
    return matrices @ x_BTD.mT[..., None]


def spec_of(part: str) -> ModelSpec:
    return resolve_model(
        ModelSpec(
            family="llama",
            layers=((part,),),
            hidden=HIDDEN,
            heads=HEADS,
            vocab=2,
            max_positions=max(LENGTHS),
            tied=False,
        )
    )


def block_of(part: str) -> Block:
    block = build_layer(spec_of(part), 1)
    initialize(block, 0, 1)
    assert isinstance(block, Block)
    return block


def by_steps(block: Block) -> Callable[[Tensor], Tensor]:
    def forward(x_BTD: Tensor) -> Tensor:
        state, y_t = block.begin(), []
        for x_BD in x_BTD.unbind(1):
            y, state = block.step(x_BD, state)
            y_t.append(y)
        return torch.stack(y_t, 1)

    return forward


def forward_of(form: str) -> Callable[[Tensor], Tensor]:
    """(1,T,D) to the form's output, of one of FORMS."""
    if form in STEPS:
        return by_steps(block_of(STEPS[form]))
    if form in PARTS:
        block = block_of(form)
        return lambda x: block(x)[0]
    others: dict[str, Callable[[Tensor], Tensor]] = {
        FUSED: fused,
        NAIVE: naive,
        FAST_CONV: lambda x: fft_conv(x, fading(x.shape[1])),
        WHOLE_CONV: by_a_matrix,
    }
    return others[form]

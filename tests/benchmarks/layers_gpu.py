"""Attention and a GPT block on a GPU, as shares of what the card's matrix products reach; for `layers.py`.

Flops are the model's. Causal attention's forward over T positions of D values is 4 T^2 D, halved because half
of the scores are not seen; a training step is three forwards, of 2 a parameter and position beside that.
"""

from __future__ import annotations

import json

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from scheduler.job import ModelSpec, resolve_model
from tests.benchmarks.layer_costs import gpu_seconds
from worker.model import build_layer, initialize
from worker.model.attention import attend

HIDDEN, HEAD_WIDTH, TOKENS = 2048, 128, 32_768
LENGTHS = (2048, 4096, 8192, 16_384)
REPETITIONS = 10
BLOCK_LENGTH, BLOCK_SAMPLES = 2048, 8
LEAST_SHARE = 0.5
NOISE = 0.02
"""By which the seconds of two runs of one kernel differ."""


def matrix_rate() -> float:
    """Flops a second of a bf16 product of 8192 x 8192 matrices."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * 8192**3 / gpu_seconds(lambda: a @ b, REPETITIONS)


def attention_rates(length: int) -> tuple[float, float]:
    """Flops a second of attention's forward: ours, and PyTorch's flash backend."""
    shape = (TOKENS // length, HIDDEN // HEAD_WIDTH, length, HEAD_WIDTH)
    q, k, v = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    flops = 2.0 * TOKENS * length * HIDDEN

    def fused() -> None:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            F.scaled_dot_product_attention(q, k, v, is_causal=True)

    with torch.no_grad():
        ours = gpu_seconds(lambda: attend(q, k, v), REPETITIONS)
        theirs = gpu_seconds(fused, REPETITIONS)
    return flops / ours, flops / theirs


def block_rate() -> float:
    """Model flops a second of a GPT block's training step (forward, backward, AdamW), in bf16."""
    model = resolve_model(
        ModelSpec(
            layers=1,
            hidden=HIDDEN,
            heads=HIDDEN // HEAD_WIDTH,
            vocab=2,
            max_positions=BLOCK_LENGTH,
            tied=False,
        )
    )
    block = build_layer(model, 1, "cuda")
    initialize(block, 0, 1)
    block.to(torch.bfloat16)
    optimizer = torch.optim.AdamW(block.parameters(), lr=1e-4, fused=True)
    x = torch.randn(BLOCK_SAMPLES, BLOCK_LENGTH, HIDDEN, device="cuda", dtype=torch.bfloat16)

    def step() -> None:
        optimizer.zero_grad()
        torch.autograd.backward(block(x)[0].sum())
        optimizer.step()

    rows, parameters = BLOCK_SAMPLES * BLOCK_LENGTH, sum(p.numel() for p in block.parameters() if p.ndim > 1)
    flops = 3.0 * rows * (2 * parameters + 2 * BLOCK_LENGTH * HIDDEN)
    return flops / gpu_seconds(step, REPETITIONS)


def gpu_report() -> tuple[list[str], bool]:
    """Lines, and whether a goal was missed; where there is no GPU, one line that says so."""
    if not torch.cuda.is_available():
        return ["No GPU here: TFLOP/s against the card's matrix rate were not measured."], False
    card = matrix_rate()
    lines = [
        f"{torch.cuda.get_device_name()}: {card / 1e12:.0f} TFLOP/s in bf16 matrix products",
        "",
        f"| attention's forward, hidden {HIDDEN} | ours, TFLOP/s | of the card's | torch's flash | ratio |",
        "|---:|---:|---:|---:|---:|",
    ]
    ratios = []
    for length in LENGTHS:
        ours, theirs = attention_rates(length)
        ratios.append(ours / theirs)
        lines.append(
            f"| {length} | {ours / 1e12:.0f} | {ours / card:.2f} | {theirs / 1e12:.0f} | {ratios[-1]:.2f} |"
        )
    share = block_rate() / card
    missed = min(ratios) < 1 - NOISE or share < LEAST_SHARE
    figures = {"least_ratio_to_flash": round(min(ratios), 3), "block_share": round(share, 3)}
    return [
        *lines,
        "",
        f"A GPT block's training step: {share:.2f} of the card's.",
        json.dumps(figures),
    ], missed

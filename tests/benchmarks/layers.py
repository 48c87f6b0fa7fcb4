"""What the parts of blocks cost at growing lengths: CPU seconds and bytes kept, beside the closed forms.

    python -m tests.benchmarks.layers [--quick] [--out FILE]

Each part alone, one sample, float32, one thread: CPU ms of forward and backward (the least of three, so that
other programs count little), as a ratio to attention over all earlier positions at that length; bytes kept
for backward a position. Goals: what is kept a position grows by no more than a fifth from the shortest
length to the longest, naive attention's excepted, which is there to show what that means; closed forms of
bytes kept are within a fifth; and at the longest length a window and Hyena cost less than attention.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from math import sqrt

import torch
from torch import Tensor

from scheduler.analytic import layer_costs
from scheduler.job import ModelSpec, resolve_model
from scheduler.layer_cost import Sizes
from tests.benchmarks.command import run
from tests.worker.model.shapes import kept
from worker.model import build_layer, initialize

HIDDEN, HEADS = 128, 4
PARTS = (
    "attention",
    "attention window=128",
    "attention butterfly=128",
    "h3",
    "s4d",
    "lssl",
    "ssd",
    "log_ssd",
    "delta",
    "log_delta",
    "longconv",
    "hyena",
    "mlp",
    "mlp linear=monarch",
    "mlp linear=pixelfly",
    "experts",
)
CHEAPER = ("attention window=128", "hyena")
NAIVE = "attention, scores whole"


def naive(x_BTD: Tensor) -> Tensor:
    """Causal attention of all heads with its scores written down, between no projections."""
    q = x_BTD.unflatten(-1, (HEADS, -1)).transpose(1, 2)  # type: ignore[no-untyped-call]
    scores = q @ q.mT / sqrt(HIDDEN // HEADS)
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    y: Tensor = (scores.masked_fill(later, -torch.inf).softmax(-1) @ q).transpose(1, 2).flatten(2)
    return y


def measured(
    forward: Callable[[Tensor], Tensor], parameters: list[torch.nn.Parameter], length: int
) -> tuple[float, int]:
    """CPU seconds of forward and backward, and bytes kept between them."""
    x = torch.randn(1, length, HIDDEN, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y, size = kept(lambda: forward(x), parameters)
    torch.autograd.backward(y.sum())
    seconds = []
    for _ in range(3):
        begin = time.process_time()
        torch.autograd.backward(forward(x).sum())
        seconds.append(time.process_time() - begin)
    return min(seconds), size


def rows(lengths: tuple[int, ...]) -> dict[str, list[tuple[float, int, int]]]:
    """Per part, at each length: seconds, bytes kept, bytes kept by the closed form (0: there is none)."""
    found: dict[str, list[tuple[float, int, int]]] = {}
    for part in PARTS:
        model = resolve_model(
            ModelSpec(
                family="llama",
                layers=((part,),),
                hidden=HIDDEN,
                heads=HEADS,
                vocab=2,
                max_positions=max(lengths),
                tied=False,
            )
        )
        block = build_layer(model, 1)
        initialize(block, 0, 1)
        parameters = list(block.parameters())
        found[part] = []
        for length in lengths:
            seconds, size = measured(lambda x, block=block: block(x)[0], parameters, length)  # type: ignore[misc]
            cost = layer_costs(model, Sizes(1, length, 4, 4))["block.00"]
            found[part].append((seconds, size, cost.saved_bytes))
    found[NAIVE] = [(*measured(naive, [], length), 0) for length in lengths]
    return found


def benchmark(quick: bool) -> tuple[list[str], bool]:
    torch.set_num_threads(1)
    lengths = (256, 1024, 2048) if quick else (512, 2048, 8192)
    found = rows(lengths)
    lines = [
        f"hidden {HIDDEN}, {HEADS} heads, one sample; CPU ms (over attention's), KiB kept a position",
        "",
    ]
    lines.append(f"{'part':26}" + "".join(f"{length:>12} {'ratio':>6} {'KiB':>7}" for length in lengths))
    for part, cells in found.items():
        shown = [
            f"{1e3 * seconds:12.1f} {seconds / found['attention'][i][0]:6.2f} {size / lengths[i] / 1024:7.1f}"
            for i, (seconds, size, _) in enumerate(cells)
        ]
        lines.append(f"{part:26}" + "".join(shown))
    growth = {
        part: cells[-1][1] / lengths[-1] / (cells[0][1] / lengths[0])
        for part, cells in found.items()
        if part not in (NAIVE, "attention butterfly=128")  # a butterfly adds a block at each doubling
    }
    off = {
        part: max(abs(size / form - 1) for _, size, form in cells)
        for part, cells in found.items()
        if cells[0][2]
    }
    ratio = {part: found[part][-1][0] / found["attention"][-1][0] for part in CHEAPER}
    met = max(growth.values()) <= 1.2 and max(off.values()) <= 0.2 and max(ratio.values()) < 1
    figures = {
        "growth_of_kept": max(growth, key=growth.__getitem__),
        "growth": round(max(growth.values()), 3),
        "closed_form_off": max(off, key=off.__getitem__),
        "off": round(max(off.values()), 3),
        "ratio_at_longest": {part: round(x, 2) for part, x in ratio.items()},
        "met": met,
    }
    return [*lines, "", json.dumps(figures)], not met


if __name__ == "__main__":
    sys.exit(run(benchmark, __doc__, "lengths to 2048"))

"""Training of a small model on a task: the project's own layers, from a seed to a score.

What is tuned here is tuned for all mixers alike: GPT-2's initial spread of 0.02 is for a hidden of 768 and
is replaced by 1 / sqrt(hidden); the things to remember grow in number over the first half of the steps,
without which none of the recurrent mixers leaves the plateau in so few.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import cos, isqrt, pi, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scheduler.job import ModelSpec, resolve_model
from tests.benchmarks.ability_tasks import UNASKED, Task
from worker.model import Layer, build_layers, initialize
from worker.model.dense_ssm import DenseSsm
from worker.model.structured import Structured

EVALUATED = 512
"""Samples of a score."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How long and how. `blocks` are a job's `layers`; where there are none, an LSTM stands between embedding
    and head."""

    blocks: tuple[tuple[str, ...], ...]
    hidden: int
    steps: int
    samples: int
    lr: float
    heads: int = 2
    ffn: int | None = None
    weight_decay: float = 0.0
    random_modes: bool = False
    """State spaces begin with modes drawn at random, not HiPPO's."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """`score`: the share of right answers, or nats."""

    score: float
    parameters: int
    cpu_s: float


class Lstm(nn.Module):
    """An LSTM of `hidden` units, as a layer."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(hidden, hidden, batch_first=True)

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, None]:
        y: Tensor = self.lstm(x_BTD)[0]
        return y, None


def model_of(task: Task, recipe: Recipe) -> ModelSpec:
    return resolve_model(
        ModelSpec(
            family="llama",
            layers=recipe.blocks or 1,
            hidden=recipe.hidden,
            heads=recipe.heads,
            ffn=recipe.ffn or 2 * recipe.hidden,
            vocab=task.vocab,
            max_positions=task.length,
            tied=False,
        )
    )


def built(task: Task, recipe: Recipe, seed: int) -> nn.ModuleList:
    """The layers with their initial weights."""
    model = model_of(task, recipe)
    layers = build_layers(model, 0, model.depth + 2)
    for index, layer in enumerate(layers):
        initialize(layer, seed, index)
        _widen(layer, sqrt(1 / model.hidden) / 0.02)
        if recipe.random_modes:
            _draw_modes(layer, torch.Generator().manual_seed(1000 * seed + index))
    if not recipe.blocks:
        torch.manual_seed(seed)  # torch's own layers draw from the global generator
        return nn.ModuleList((layers[0], Lstm(model.hidden), layers[-1]))
    return nn.ModuleList(layers)


def trained(task: Task, recipe: Recipe, seed: int) -> Outcome:
    """The score after `recipe` from `seed`."""
    begin, layers = time.process_time(), built(task, recipe, seed)
    optimizer = _optimizer(layers, recipe)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _warm_then_cosine(recipe.steps))
    rng = torch.Generator().manual_seed(1000 + seed)
    for step in range(recipe.steps):
        size = _size(task, rng, step / recipe.steps)
        # Small samples are short: more of them cost the same.
        samples = min(4, task.most // size) * recipe.samples
        logits, answers = _asked(layers, *task.batch(rng, samples, size))
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(logits, answers))
        nn.utils.clip_grad_norm_(layers.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    parameters = sum(p.numel() for p in layers.parameters())
    return Outcome(score(task, layers), parameters, time.process_time() - begin)


@torch.no_grad()
def score(task: Task, layers: nn.ModuleList) -> float:
    """Of samples that all seeds have in common."""
    logits, answers = _asked(layers, *task.held_out(torch.Generator().manual_seed(0), EVALUATED))
    if task.loss:
        return F.cross_entropy(logits, answers).item()
    return (logits.argmax(-1) == answers).double().mean().item()


def _asked(layers: nn.ModuleList, tokens: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and answers where there is something to answer, (R,V) and (R,)."""
    x = tokens
    for layer in list(layers)[:-1]:
        x, _ = layer(x)
    at = answers != UNASKED
    logits, _ = layers[-1](x[at])
    return logits, answers[at]


def _size(task: Task, rng: torch.Generator, progress: float) -> int:
    """`most`, or a half, a quarter, … of it: the larger ones come in over the first half of the steps."""
    halves = (task.most >> k for k in range(task.most.bit_length()))
    sizes = [size for size in halves if size >= task.least][::-1]
    known = min(len(sizes), 2 + int(2 * progress * len(sizes)))
    return sizes[int(torch.randint(known, (), generator=rng))]


def _optimizer(layers: nn.ModuleList, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW; decay is for matrices."""
    groups = [
        {
            "params": [p for p in layers.parameters() if (p.ndim > 1) == is_matrix],
            "weight_decay": recipe.weight_decay if is_matrix else 0.0,
        }
        for is_matrix in (True, False)
    ]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.95))


def _warm_then_cosine(steps: int) -> Callable[[int], float]:
    return lambda step: min(1.0, 10 * (step + 1) / steps) * (0.5 + 0.5 * cos(pi * step / steps))


@torch.no_grad()
def _widen(layer: Layer, factor: float) -> None:
    """Multiply the matrices that no part has a better beginning for; of structured ones, the last factors."""
    for name, parameter in layer.named_parameters():
        module, _, own = name.rpartition(".")
        if isinstance(layer.get_submodule(module), Structured):
            drawn = own in ("second", "tiles", "left")
        else:
            drawn = parameter.ndim > 1 and layer.initial(name, torch.Generator()) is None
        if drawn:
            parameter.mul_(factor)


@torch.no_grad()
def _draw_modes(layer: Layer, rng: torch.Generator) -> None:
    """S4D's: exp(z) for -Re A and z for Im A, z normal. LSSL's matrix: z / sqrt(N) - 1, whose modes fill a
    disc left of 0."""
    for name, parameter in layer.named_parameters():
        if name.endswith("ssm.rates"):
            drawn = torch.randn(parameter.shape, generator=rng)
            if isinstance(layer.get_submodule(name.removesuffix(".rates")), DenseSsm):
                n = isqrt(len(drawn))
                drawn = drawn / sqrt(n) - torch.eye(n).flatten()
            parameter.copy_(drawn)

"""Small models of every kind, and their layers with weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from scheduler.job import ModelSpec, resolve_model
from worker.model import Head, Layer, build_layers, initialize

torch.set_num_threads(1)

_SMALL: dict[str, Any] = {"layers": 3, "hidden": 32, "heads": 4, "vocab": 61, "max_positions": 40}


def spec(**keys: Any) -> ModelSpec:
    return resolve_model(ModelSpec(**{**_SMALL, **keys}))


KINDS: dict[str, ModelSpec] = {
    "gpt2": spec(family="gpt2"),
    "gpt2-untied": spec(family="gpt2", tied=False),
    "llama": spec(family="llama", tied=False),
    "llama-tied": spec(family="llama", tied=True),
    "llama-grouped": spec(family="llama", kv_heads=2, tied=False, rope_theta=500.0),
    "llama-single": spec(family="llama", kv_heads=1, tied=True, ffn=48),
}


def layers_of(
    model: ModelSpec,
    start: int = 0,
    stop: int | None = None,
    dtype: torch.dtype = torch.float64,
    seed: int = 7,
) -> list[Layer]:
    layers = build_layers(model, start, model.depth + 2 if stop is None else stop)
    for index, layer in enumerate(layers, start):
        initialize(layer, seed, index)
    for layer in layers:
        layer.to(dtype)
    return layers


def tokens_of(model: ModelSpec, batch: int = 2, length: int = 11, seed: int = 3) -> Tensor:
    assert model.vocab is not None
    return torch.randint(0, model.vocab, (batch, length), generator=torch.Generator().manual_seed(seed))


def logits_of(layers: list[Layer], x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)[0]
    return x


def loss_of(layers: list[Layer], x: Tensor, targets: Tensor) -> Tensor:
    head = layers[-1]
    assert isinstance(head, Head)
    return head.loss(logits_of(layers[:-1], x), targets)


def kept(run: Callable[[], Tensor], parameters: list[nn.Parameter]) -> tuple[Tensor, int]:
    """What `run` returns, and the bytes that autograd keeps for its backward, but for parameters."""
    own = {p.untyped_storage().data_ptr() for p in parameters}
    memory: dict[int, tuple[int, Tensor]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            memory[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = run()
    return result, sum(size for size, _ in memory.values())

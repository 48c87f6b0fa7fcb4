"""From a model's spec and an index to its layer, with initial weights that no partition can change.

Index 0 is the embedding, 1 .. depth the blocks, depth + 1 the head. Knows no files.
"""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from scheduler.job import ModelSpec
from scheduler.pattern import PatternError
from worker.model.block import Block
from worker.model.embedding import Embedding
from worker.model.head import Head
from worker.model.layer import Layer, ModelError


def build_layer(model: ModelSpec, index: int, device: torch.device | str = "cpu") -> Layer:
    """Layer `index` of `model` (resolved, vocab set), float32; its weights are NaN until they are
    initialised or loaded. Raises ModelError for a spec or an index that cannot be."""
    _check(model)
    with torch.device(device):
        if index == 0:
            return Embedding(model)
        if 1 <= index <= model.depth:
            return Block(model, index - 1)
        if index == model.depth + 1:
            return Head(model)
    raise ModelError(f"found layer {index}; required 0 .. {model.depth + 1}: this model has no other")


def build_layers(model: ModelSpec, start: int, stop: int, device: torch.device | str = "cpu") -> list[Layer]:
    """Layers `start` .. `stop` - 1. A tied embedding and head among them share one Parameter object."""
    layers = [build_layer(model, index, device) for index in range(start, stop)]
    if model.tied and layers and isinstance(layers[0], Embedding) and isinstance(layers[-1], Head):
        layers[-1].weight = layers[0].weight
    return layers


def tied_parameter(layer: Layer) -> nn.Parameter | None:
    """The parameter that this layer has in common with the model's other end, if the model is tied.

    Where embedding and head are in different stages each has a copy, and both must step with the sum
    of the two gradients.
    """
    return layer.weight if isinstance(layer, Embedding | Head) and layer.tied else None


@torch.no_grad()
def initialize(layer: Layer, seed: int, index: int) -> None:
    """GPT-2's initial weights (Radford et al. 2019) for the layer at `index`, in place.

    Each matrix has a random stream of its own, named by (seed, layer, parameter), drawn on the CPU in
    float32: the same for every partition and device. A tied head draws the embedding's. Norms begin
    at 1, biases at 0, and what a part knows better (a state's decay) where it says.
    """
    for name, parameter in layer.named_parameters():
        owner = 0 if parameter is tied_parameter(layer) else index
        digest = hashlib.blake2b(f"{seed}/{owner}/{name}".encode(), digest_size=8).digest()
        rng = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
        special = layer.initial(name, rng)
        if special is not None:
            parameter.copy_(special)
            continue
        if parameter.ndim == 1:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        drawn = torch.randn(parameter.shape, generator=rng, device="cpu", dtype=torch.float32)
        parameter.copy_(drawn * layer.initial_std(name))


def _check(model: ModelSpec) -> None:
    for field in ("vocab", "kv_heads", "ffn"):
        if getattr(model, field) is None:
            raise ModelError(
                f"model.{field}: found none; required: a resolved spec (scheduler.job.resolve_model),"
                " vocab from the tokenizer"
            )
    try:
        misfits = [misfit for parts in set(model.blocks) for part in parts for misfit in part.misfits(model)]
    except PatternError as e:
        raise ModelError(f"model.layers: {e}") from None
    for found, required in misfits:
        raise ModelError(f"model: found {found}; required {required}")
    if model.family == "gpt2" and model.kv_heads != model.heads:
        raise ModelError(
            f"model.kv_heads: found {model.kv_heads}; required {model.heads}:"
            " in family gpt2 every head has its own"
        )

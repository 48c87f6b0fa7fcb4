"""A layer's weights and optimizer state as safetensors bytes, and back, checked.

The files are the coordinator's to keep (`scheduler.checkpoint_layout` names them); this knows
tensors only. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from scheduler.checkpoint_layout import LayerFileInfo, local_file, optimizer_file, weights_file
from scheduler.plan import Plan
from worker.model import Layer
from worker.optimizer import OptimizerStateError, StageOptimizer
from worker.outer import OuterOptimizer
from worker.stage import Stage


class LayerFileError(Exception):
    """A layer's file that is not what it must be: says what was found and what is required."""


def to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """The tensors as one safetensors file."""
    data: bytes = safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
    return data


def from_bytes(data: bytes, name: str) -> dict[str, Tensor]:
    """Inverse of `to_bytes`; `name` is for errors. Raises LayerFileError."""
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(data)
    except (SafetensorError, ValueError) as e:
        raise LayerFileError(f"{name}: found {e}, required a safetensors file") from e
    return tensors


def file_info(name: str, data: bytes) -> LayerFileInfo:
    """Name, hash and size of a file's content."""
    return LayerFileInfo(name, hashlib.sha256(data).hexdigest(), len(data))


def check(data: bytes, expected: LayerFileInfo) -> None:
    """Raises LayerFileError unless `data` has the size and the hash that were promised."""
    found = file_info(expected.name, data)
    if found != expected:
        raise LayerFileError(
            f"{expected.name}: found {found.n_bytes} bytes with sha256 {found.sha256[:16]}…, required "
            f"{expected.n_bytes} bytes with {expected.sha256[:16]}…; the checkpoint was changed"
        )


def stage_files(
    stage: Stage, optimizer: StageOptimizer, first_layer: int, outer: OuterOptimizer | None = None
) -> dict[str, bytes]:
    """The stage's layers and their optimizer state by file name; without state before the first step.

    With an outer optimizer the weights are those that all replicas hold alike.
    """
    files: dict[str, bytes] = {}
    for i, layer in enumerate(stage.layers):
        weights = layer.state_dict() if outer is None else outer.anchored(i)
        files[weights_file(first_layer + i)] = to_bytes(weights)
        if state := optimizer.layer_state(i):
            files[optimizer_file(first_layer + i)] = to_bytes(state)
    return files


def local_files(
    outer: OuterOptimizer, stage: Stage, optimizer: StageOptimizer, plan: Plan, rank: int
) -> dict[str, bytes]:
    """What a rank of a plan of local steps alone knows of its layers, by file name."""
    replica, first = plan.replica_of(rank), plan.partition[plan.stage_of(rank)][0]
    return {
        local_file(first + i, replica): to_bytes(outer.layer_state(i, optimizer))
        for i in range(len(stage.layers))
    }


def load_local(
    outer: OuterOptimizer,
    optimizer: StageOptimizer,
    plan: Plan,
    rank: int,
    fetch: Callable[[str], Mapping[str, Tensor] | None],
) -> int:
    """Give a rank what `local_files` saved; how many layers had it. `fetch`: a file's tensors.

    Of a checkpoint of more or fewer replicas only the outer momentum is taken: all begin at the anchor.
    """
    replica, (first, stop) = plan.replica_of(rank), plan.partition[plan.stage_of(rank)]
    same = fetch(local_file(first, plan.n_replicas)) is None  # there was no replica more
    same = same and fetch(local_file(first, plan.n_replicas - 1)) is not None
    loaded = 0
    for layer in range(first, stop):
        state = fetch(local_file(layer, replica if same else 0))
        if state is not None and same:
            outer.load_layer_state(layer - first, state, optimizer)
        elif state is not None:
            outer.load_momentum(layer - first, state)
        loaded += state is not None
    return loaded


def load_weights(layer: Layer, tensors: Mapping[str, Tensor], name: str) -> None:
    """Copy a saved layer's weights. Raises LayerFileError naming the tensor that does not fit."""
    own = layer.state_dict()
    if set(own) != set(tensors):
        raise LayerFileError(
            f"{name}: found the tensors {', '.join(sorted(tensors))}; required {', '.join(sorted(own))}"
        )
    for key, value in tensors.items():
        if value.shape != own[key].shape:
            raise LayerFileError(
                f"{name}: {key}: found the shape {tuple(value.shape)}, required {tuple(own[key].shape)}"
            )
    layer.load_state_dict(dict(tensors))


def load_state(optimizer: StageOptimizer, i: int, tensors: Mapping[str, Tensor], name: str) -> None:
    """Copy a saved optimizer state to the i-th layer of the stage. Raises LayerFileError."""
    try:
        optimizer.load_layer_state(i, tensors)
    except OptimizerStateError as e:
        raise LayerFileError(f"{name}: {e}") from e

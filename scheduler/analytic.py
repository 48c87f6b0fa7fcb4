"""What a model's layers cost, computed from its shape alone, and how long that takes on a device.

The closed forms of flops and bytes for everybody: the worker's profiles, and plans made before there
is a worker. Knows no tensors; tests hold it against PyTorch's layers and counters. Measures nothing.

What blocks are made of has its closed forms in `scheduler/mixers`. Letters: B samples, T positions,
D hidden, V vocabulary.
"""

from __future__ import annotations

from math import inf
from typing import TypedDict

from scheduler.gpus import ACHIEVABLE, Accelerator, Precision
from scheduler.job import JobSpec, ModelSpec, OptimizerSpec, resolve_model
from scheduler.layer_cost import FLOAT_BYTES, NOTHING, TOKEN_BYTES, Cost, LayerCost, Mode, Sizes
from scheduler.pattern import Block
from scheduler.profile import DeviceProfile, LayerProfile, ModelProfile

LOSS_CHUNK_BYTES = 256 << 20
"""Logits (float32) that the loss holds at once. Above it, they are made in chunks and made again in
backward: a product more, but 4 x 2048 positions of 128k tokens would take 4 GB otherwise."""


class ShapeError(ValueError):
    """A model whose cost cannot be computed: says which key lacks."""


def job_profile(job: JobSpec, shape: ModelSpec | None = None) -> ModelProfile:
    """`model_profile` of the job: parameters in float32 as workers hold them, boundaries in its precision.

    `shape`: the job's model with the tokenizer's vocabulary, where the job leaves that to the tokenizer.
    """
    return model_profile(
        shape or job.shape,
        job.profiled_micro_batch,
        job.sequence_length,
        dtype_bytes=2 if job.precision == "bf16" else FLOAT_BYTES,
        optimizer=job.optimizer,
        documents_apart=job.data.documents == "apart",
    )


def model_profile(
    shape: ModelSpec,
    micro_batch: int,
    sequence_length: int,
    dtype_bytes: int = FLOAT_BYTES,
    *,
    parameter_dtype_bytes: int = FLOAT_BYTES,
    optimizer: OptimizerSpec | None = None,
    documents_apart: bool = False,
) -> ModelProfile:
    """Embedding, blocks and head of `shape` for micro-batches of `micro_batch` samples (B) of
    `sequence_length` tokens (T); activations are `dtype_bytes` wide, parameters and their gradients
    `parameter_dtype_bytes`. Where parameters are the wider, the residual stream is as wide as they, and
    a step keeps copies of the matrices in the activations' width (PyTorch's autocast).
    `optimizer`: whose state is kept (default: AdamW). `documents_apart`: samples hold several documents that
    do not see each other; flops are still those of every pair.

    Flops count products (2 x m x n x k each; attention as if every pair of positions were multiplied,
    its backward with scores computed again), as PyTorch's flop counter has it. Raises ShapeError
    without a vocabulary.
    """
    model = resolve_model(shape)
    if model.family == "gpt2" and model.max_positions is None:
        model = model.model_copy(update={"max_positions": sequence_length})
    stream_bytes = max(dtype_bytes, parameter_dtype_bytes)
    sizes = Sizes(micro_batch, sequence_length, dtype_bytes, stream_bytes, documents_apart)
    state = _state_bytes_a_parameter(optimizer or OptimizerSpec(), parameter_dtype_bytes)
    layers = tuple(
        LayerProfile(
            name,
            c.forward_flops,
            c.backward_flops,
            parameter_bytes=c.parameters * parameter_dtype_bytes,
            boundary_bytes=0 if name == "head" else sizes.rows * model.hidden * dtype_bytes,
            saved_bytes=c.saved_bytes,
            state_bytes=c.parameters * state,
            tied_to="embedding" if name == "head" and model.tied else "",
            working_bytes=c.working_bytes,
            pair_flops=c.pair_flops,
            keys=c.keys,
        )
        for name, c in layer_costs(model, sizes).items()
    )
    return ModelProfile(layers, micro_batch, sequence_length, value_bytes=dtype_bytes)


def loss_rows(vocab: int) -> int:
    """Positions whose logits the loss makes at once."""
    return max(1, LOSS_CHUNK_BYTES // (FLOAT_BYTES * vocab))


def _state_bytes_a_parameter(optimizer: OptimizerSpec, parameter_dtype_bytes: int) -> int:
    """AdamW: two float32 moments, whatever dtype the parameter has; SGD: its momentum, if it has one."""
    if optimizer.name == "adamw":
        return 2 * FLOAT_BYTES
    return parameter_dtype_bytes if optimizer.momentum else 0


def layer_costs(model: ModelSpec, sizes: Sizes) -> dict[str, Cost]:
    """The closed forms of each layer of `model`, resolved, by name, in order. Raises ShapeError."""
    if model.vocab is None:
        raise ShapeError("model.vocab: found none; required: the tokenizer's size, or a preset that names it")
    blocks = {parts: _block(model, parts, sizes) for parts in set(model.blocks)}
    costs = {"embedding": _embedding(model, model.vocab, sizes)}
    costs |= {f"block.{i:02d}": blocks[parts] for i, parts in enumerate(model.blocks)}
    return costs | {"head": _head(model, model.vocab, sizes)}


def layer_cost(
    model: ModelSpec, index: int, batch: int, length: int, dtype_bytes: int, mode: Mode
) -> LayerCost:
    """Layer `index` of `model`, resolved, whose parameters and activations are `dtype_bytes` wide."""
    sizes = Sizes(batch, length, dtype_bytes, dtype_bytes)
    c = list(layer_costs(model, sizes).values())[index]
    rows = batch if mode == "step" else sizes.rows
    flops = {"forward": c.forward_flops, "backward": c.backward_flops, "step": c.step_flops}[mode]
    return LayerCost(
        flops,
        0 if mode == "step" else c.saved_bytes + c.working_bytes,
        c.parameters * dtype_bytes,
        0 if index == model.depth + 1 else rows * model.hidden * dtype_bytes,
        c.state_bytes,
    )


def _embedding(model: ModelSpec, vocab: int, sizes: Sizes) -> Cost:
    """Looking up multiplies nothing; the tokens are kept."""
    rows = vocab
    if model.family == "gpt2":
        assert model.max_positions is not None
        rows += model.max_positions
    return Cost(rows * model.hidden, 0.0, 0.0, sizes.rows * TOKEN_BYTES)


def _block(model: ModelSpec, parts: Block, sizes: Sizes) -> Cost:
    return sum((_norm(model, sizes) + part.cost(model, sizes) for part in parts), start=NOTHING)


def _head(model: ModelSpec, vocab: int, sizes: Sizes) -> Cost:
    """Norm, logits and loss. Kept: what the norm keeps, its output, targets and their weight, and
    log-probabilities in float32. Made in chunks, the last are not kept; one chunk is at work."""
    forward = sizes.product(model.hidden, vocab)
    chunk = min(sizes.rows, loss_rows(vocab))
    again = 1 if sizes.rows > chunk else 0
    logits = chunk * vocab * FLOAT_BYTES
    kept = sizes.rows * (model.hidden * sizes.value_bytes + TOKEN_BYTES) + (0 if again else logits)
    return _norm(model, sizes) + Cost(
        vocab * model.hidden,
        forward,
        (2 + again) * forward,
        kept,
        sizes.copies(vocab * model.hidden) + (logits if again else 0),
        forward / sizes.length,
    )


def _norm(model: ModelSpec, sizes: Sizes) -> Cost:
    """LayerNorm keeps the input, and mean and deviation of each row in float32; RMSNorm the input, the
    input scaled, and each row's scale (a fused kernel needs one less)."""
    gpt2 = model.family == "gpt2"
    wide, narrow = (1, 2) if gpt2 else (2, 1)
    kept = sizes.rows * (wide * model.hidden * sizes.stream_bytes + narrow * FLOAT_BYTES)
    return Cost((2 if gpt2 else 1) * model.hidden, 0.0, 0.0, kept)


def device_profile(
    model: ModelProfile, device: str, achieved_flops: float, memory_Bps: float = inf
) -> DeviceProfile:
    """Seconds of each layer on `device` by the roofline (Williams et al. 2009): the longer of
    flops / `achieved_flops` and bytes / `memory_Bps` (default: memory is never what is waited for).

    Bytes that pass through memory: forward reads the weights it multiplies with, and writes what it
    saves and hands on; backward reads the same and writes as much in gradients, and reads and writes
    the weights' gradients; the optimizer reads weights, gradients and state, and writes weights and
    state. What does not grow with the samples is read off one sample and the profiled number of them.
    Raises ValueError for rates that are not above 0.
    """
    for label, rate in (("achieved_flops", achieved_flops), ("memory_Bps", memory_Bps)):
        if not rate > 0:
            raise ValueError(f"device {device}, {label}: found {rate}, required more than 0")
    whole = [_roofline(x, achieved_flops, memory_Bps) for x in model.layers]
    forward_s, backward_s, optimizer_s = zip(*whole, strict=True)
    pairs = [x.pair_flops / x.forward_flops if x.pair_flops else 0.0 for x in model.layers]
    back = [2.5 * x.pair_flops / x.backward_flops if x.pair_flops else 0.0 for x in model.layers]
    of_pairs: _OfPairs = {
        "forward_pairs_s": tuple(share * s for share, s in zip(pairs, forward_s, strict=True)),
        "backward_pairs_s": tuple(share * s for share, s in zip(back, backward_s, strict=True)),
    }
    if model.micro_batch == 1:
        return DeviceProfile(device, forward_s, backward_s, optimizer_s, **of_pairs)
    one = [_roofline(x, achieved_flops, memory_Bps) for x in model.scaled(1).layers]
    n = model.micro_batch
    fixed_s = [
        tuple(max(0.0, (n * o[i] - w[i]) / (n - 1)) for w, o in zip(whole, one, strict=True)) for i in (0, 1)
    ]
    return DeviceProfile(device, forward_s, backward_s, optimizer_s, *fixed_s, **of_pairs)


class _OfPairs(TypedDict):
    forward_pairs_s: tuple[float, ...]
    backward_pairs_s: tuple[float, ...]


def _roofline(x: LayerProfile, achieved_flops: float, memory_Bps: float) -> tuple[float, float, float]:
    """Seconds of forward, backward and the optimizer's step."""
    weights = x.parameter_bytes if x.forward_flops else 0  # a lookup reads rows, not the table
    forward_bytes = weights + x.saved_bytes + x.working_bytes + x.boundary_bytes
    backward_bytes = 2 * forward_bytes - weights + 2 * x.parameter_bytes
    return (
        max(x.forward_flops / achieved_flops, forward_bytes / memory_Bps),
        max(x.backward_flops / achieved_flops, backward_bytes / memory_Bps),
        (3 * x.parameter_bytes + 2 * x.state_bytes) / memory_Bps,
    )


def accelerator_profile(
    model: ModelProfile,
    device: str,
    accelerator: Accelerator,
    precision: Precision,
    fraction: float = ACHIEVABLE,
) -> DeviceProfile:
    """`device_profile` of an accelerator that reaches `fraction` of its peak. AcceleratorError for a
    precision that it has no units for."""
    return device_profile(
        model, device, accelerator.achieved_flops(precision, fraction), accelerator.memory_Bps
    )

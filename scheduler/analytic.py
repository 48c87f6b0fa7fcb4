"""What a model's layers cost, computed from its shape alone, and how long that takes on a device.

The closed forms of flops and bytes for everybody: the worker's profiles, and plans made before there
is a worker. Knows no tensors; tests hold it against PyTorch's layers and counters. Measures nothing.

Letters: B samples, T positions, D hidden, H heads, K key-value heads, F inner width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from scheduler.gpus import ACHIEVABLE, Accelerator, Precision
from scheduler.job import JobSpec, ModelSpec, OptimizerSpec, resolve_model
from scheduler.profile import DeviceProfile, LayerProfile, ModelProfile

LOSS_CHUNK_BYTES = 256 << 20
"""Logits (float32) that the loss holds at once. Above it, they are made in chunks and made again in
backward: a product more, but 4 x 2048 positions of 128k tokens would take 4 GB otherwise."""

TOKEN_BYTES = 8
FLOAT_BYTES = 4


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
    )


def model_profile(
    shape: ModelSpec,
    micro_batch: int,
    sequence_length: int,
    dtype_bytes: int = FLOAT_BYTES,
    *,
    parameter_dtype_bytes: int = FLOAT_BYTES,
    optimizer: OptimizerSpec | None = None,
) -> ModelProfile:
    """Embedding, blocks and head of `shape` for micro-batches of `micro_batch` samples (B) of
    `sequence_length` tokens (T); activations are `dtype_bytes` wide, parameters and their gradients
    `parameter_dtype_bytes`. Where parameters are the wider, the residual stream is as wide as they, and
    a step keeps copies of the matrices in the activations' width (PyTorch's autocast).
    `optimizer`: whose state is kept (default: AdamW).

    Flops count products (2 x m x n x k each; attention as if every pair of positions were multiplied,
    its backward with scores computed again), as PyTorch's flop counter has it. Raises ShapeError
    without a vocabulary.
    """
    model = resolve_model(shape)
    if model.vocab is None:
        raise ShapeError("model.vocab: found none; required: the tokenizer's size, or a preset that names it")
    if model.family == "gpt2" and model.max_positions is None:
        model = model.model_copy(update={"max_positions": sequence_length})
    stream_bytes = max(dtype_bytes, parameter_dtype_bytes)
    sizes = _Sizes(model, micro_batch, sequence_length, dtype_bytes, stream_bytes)
    block = sizes.block()
    costs = {"embedding": sizes.embedding()}
    costs |= {f"block.{i:02d}": block for i in range(model.layers)}
    costs["head"] = sizes.head()
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
        )
        for name, c in costs.items()
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


@dataclass(frozen=True, slots=True)
class _Cost:
    parameters: int
    forward_flops: float
    backward_flops: float
    saved_bytes: int
    """What forward keeps for backward, without parameters and what all layers share."""
    working_bytes: int = 0
    """What is needed once, however many micro-batches are in flight."""


@dataclass(frozen=True, slots=True)
class _Sizes:
    """The closed forms of one model at one size of micro-batch. `model` is resolved."""

    model: ModelSpec
    batch: int
    length: int
    value_bytes: int
    """Of an activation that products take and give."""
    stream_bytes: int
    """Of a value of the residual stream, which norms take."""

    @property
    def rows(self) -> int:
        """B x T positions."""
        return self.batch * self.length

    @property
    def vocab(self) -> int:
        assert self.model.vocab is not None
        return self.model.vocab

    def embedding(self) -> _Cost:
        """Looking up multiplies nothing; the tokens are kept."""
        rows = self.vocab
        if self.model.family == "gpt2":
            assert self.model.max_positions is not None
            rows += self.model.max_positions
        return _Cost(rows * self.model.hidden, 0.0, 0.0, self.rows * TOKEN_BYTES)

    def block(self) -> _Cost:
        attention, mlp = self._attention(), self._mlp()
        return _Cost(
            2 * self._norm_parameters() + attention.parameters + mlp.parameters,
            attention.forward_flops + mlp.forward_flops,
            attention.backward_flops + mlp.backward_flops,
            2 * self._norm_saved_bytes() + attention.saved_bytes + mlp.saved_bytes,
            attention.working_bytes + mlp.working_bytes,
        )

    def head(self) -> _Cost:
        """Norm, logits and loss. Kept: what the norm keeps, its output, targets and their weight, and
        log-probabilities in float32. Made in chunks, the last are not kept; one chunk is at work."""
        forward = self._product(self.model.hidden, self.vocab)
        chunk = min(self.rows, loss_rows(self.vocab))
        again = 1 if self.rows > chunk else 0
        kept = self.rows * (self.model.hidden * self.value_bytes + TOKEN_BYTES)
        logits = chunk * self.vocab * FLOAT_BYTES
        copies = self._copies(self.vocab * self.model.hidden)
        return _Cost(
            self._norm_parameters() + self.vocab * self.model.hidden,
            forward,
            (2 + again) * forward,
            self._norm_saved_bytes() + kept + (0 if again else logits),
            copies + (logits if again else 0),
        )

    def _attention(self) -> _Cost:
        """Backward has five products of pairs for forward's two, because the scores are computed again.

        Kept: the input, queries, keys and values, the output, a float32 a head and position. Where
        positions are rotated, values keep alive the whole product they are a view of.
        """
        m = self.model
        assert m.kv_heads is not None
        gpt2 = m.family == "gpt2"
        head_width = m.hidden // m.heads
        joint = (m.heads + 2 * m.kv_heads) * head_width
        linear = self._product(m.hidden, joint) + self._product(m.hidden, m.hidden)
        pairs = 4.0 * self.batch * self.length**2 * m.hidden
        rotated = 0 if gpt2 else (m.heads + m.kv_heads) * head_width
        return _Cost(
            m.hidden * (joint + m.hidden) + (joint + m.hidden if gpt2 else 0),
            linear + pairs,
            2 * linear + 2.5 * pairs,
            self.rows * ((2 * m.hidden + joint + rotated) * self.value_bytes + m.heads * FLOAT_BYTES),
            self._copies(m.hidden * (joint + m.hidden)),
        )

    def _mlp(self) -> _Cost:
        """GELU keeps its input and output; SwiGLU gate and up, silu(gate), and the product."""
        m = self.model
        assert m.ffn is not None
        gpt2 = m.family == "gpt2"
        forward = (2 if gpt2 else 3) * self._product(m.hidden, m.ffn)
        biases = m.ffn + m.hidden if gpt2 else 0
        kept = m.hidden + (2 if gpt2 else 4) * m.ffn
        return _Cost(
            (2 if gpt2 else 3) * m.hidden * m.ffn + biases,
            forward,
            2 * forward,
            self.rows * kept * self.value_bytes,
            self._copies((2 if gpt2 else 3) * m.hidden * m.ffn),
        )

    def _product(self, inputs: int, outputs: int) -> float:
        return 2.0 * self.rows * inputs * outputs

    def _copies(self, n_weights: int) -> int:
        """Matrices that are wider than the products' values are copied in their width."""
        return n_weights * self.value_bytes if self.stream_bytes > self.value_bytes else 0

    def _norm_parameters(self) -> int:
        return (2 if self.model.family == "gpt2" else 1) * self.model.hidden

    def _norm_saved_bytes(self) -> int:
        """LayerNorm: the input, and mean and deviation of each row in float32. RMSNorm: the input, the
        input scaled, and each row's scale (a fused kernel needs one less)."""
        if self.model.family == "gpt2":
            return self.rows * (self.model.hidden * self.stream_bytes + 2 * FLOAT_BYTES)
        return self.rows * (2 * self.model.hidden * self.stream_bytes + FLOAT_BYTES)


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
    if model.micro_batch == 1:
        return DeviceProfile(device, forward_s, backward_s, optimizer_s)
    one = [_roofline(x, achieved_flops, memory_Bps) for x in model.scaled(1).layers]
    n = model.micro_batch
    fixed_s = [
        tuple(max(0.0, (n * o[i] - w[i]) / (n - 1)) for w, o in zip(whole, one, strict=True)) for i in (0, 1)
    ]
    return DeviceProfile(device, forward_s, backward_s, optimizer_s, *fixed_s)


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

"""What a donor tells a follower of its layers, item by item: a layer as it is after some step, then the
gradients of every step from there on, as its optimizer takes them.

    item:   header (kind B, layer Q, step Q, rate d, frozen q, files Q Q, sha256 32s), then files, in pieces

Items of one donor are numbered and come in order; every one is hashed. Knows frames and files; steps nothing.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.checkpoint import LayerFileError, from_bytes, to_bytes
from worker.held_layers import HeldLayer
from worker.transport import Frame, FrameError, FrameKey, Transport

PIECE_BYTES = 1 << 20
"""Of one frame: so little that what a step sends is not kept waiting."""
HEADER = struct.Struct("<BQQdqQQ32s")
"""Kind, layer, step, learning rate, frozen after, bytes of the first and the second file, SHA-256 of both."""
_WHOLE, _STEPPED = 0, 1
_NEVER_FROZEN = -1


@dataclass(frozen=True, slots=True)
class Whole:
    """A layer as it is after `step` steps."""

    layer: int
    step: int
    held: HeldLayer


@dataclass(frozen=True, slots=True)
class Stepped:
    """With what the layer's optimizer takes step `step`, after which it has seen one step more."""

    layer: int
    step: int
    lr: float
    frozen_after: int | None
    """As `StageOptimizer.step_by_momentum` has it; None: a plain step."""
    gradients: Mapping[str, Tensor]
    """By parameter; one that has none is not stepped."""

    @property
    def n_bytes(self) -> int:
        return sum(g.nbytes for g in self.gradients.values())


Item = Whole | Stepped


def packed(item: Item) -> memoryview:
    """Header and files, end to end."""
    lr, frozen, state = 0.0, _NEVER_FROZEN, b""
    match item:
        case Whole(_, _, held):
            kind, first = _WHOLE, to_bytes(held.weights)
            state = to_bytes(held.state) if held.state else b""
        case Stepped(_, _, lr, frozen_after, gradients):
            kind, first = _STEPPED, to_bytes(gradients)
            frozen = _NEVER_FROZEN if frozen_after is None else frozen_after
    digest = hashlib.sha256(first + state).digest()
    header = HEADER.pack(kind, item.layer, item.step, lr, frozen, len(first), len(state), digest)
    return memoryview(header + first + state)


def send_item(
    transport: Transport,
    version: int,
    src: int,
    dst: int,
    number: int,
    item: memoryview,
    sent: Callable[[int], None],
) -> None:
    """Send a `packed` item. `sent(n_bytes)`: told after each piece, and may take its time before the next."""
    for piece, at in enumerate(range(0, len(item), PIECE_BYTES)):
        data = item[at : at + PIECE_BYTES]
        key = FrameKey("followed", number, piece, src)
        transport.send(Frame(key, dst, version, "identity", "uint8", (data.nbytes,), [data]))
        sent(data.nbytes)


def receive_item(
    transport: Transport, src: int, number: int, caps: Mapping[int, int], timeout_s: float
) -> Item:
    """The item. `caps`: layer -> most bytes of its files; others are refused.

    Raises FrameError for what cannot be, LayerFileError for what is not what its sender hashed, and what the
    transport raises.
    """
    data = bytearray(_piece(transport, src, number, 0, timeout_s))
    if len(data) < HEADER.size:
        raise FrameError(f"item {number}: found {len(data)} bytes, required a header of {HEADER.size}")
    kind, layer, step, lr, frozen, n_first, n_state, digest = HEADER.unpack_from(data)
    if layer not in caps:
        raise FrameError(f"item {number}: found layer {layer}, required one of {sorted(caps)}")
    if kind not in (_WHOLE, _STEPPED) or n_first + n_state > caps[layer]:
        raise FrameError(
            f"item {number} of layer {layer}: found kind {kind} of {n_first + n_state} bytes, required 0 or 1"
            f" of at most {caps[layer]}"
        )
    n_bytes = HEADER.size + n_first + n_state
    for piece in range(1, -(-n_bytes // PIECE_BYTES)):
        data += _piece(transport, src, number, piece, timeout_s)
    if len(data) != n_bytes:
        raise FrameError(f"item {number} of layer {layer}: found {len(data)} bytes, required {n_bytes}")
    body = memoryview(data)[HEADER.size :]
    if hashlib.sha256(body).digest() != digest:
        raise LayerFileError(f"item {number} of layer {layer}: found another hash than its donor named")
    name = f"layer {layer} after step {step}, from its donor"
    first = from_bytes(bytes(body[:n_first]), name)
    if kind == _WHOLE:
        return Whole(
            layer, step, HeldLayer(first, from_bytes(bytes(body[n_first:]), name) if n_state else {})
        )
    return Stepped(layer, step, lr, None if frozen == _NEVER_FROZEN else frozen, first)


def _piece(transport: Transport, src: int, number: int, piece: int, timeout_s: float) -> bytes:
    return b"".join(transport.receive(FrameKey("followed", number, piece, src), timeout_s).payload)


def digest_of(layer: HeldLayer) -> bytes:
    """SHA-256 over weights and state, with their names, types and shapes: equal for equal bits."""
    found = hashlib.sha256()
    for what in (layer.weights, layer.state):
        found.update(struct.pack("<Q", len(what)))
        for name, tensor in sorted(what.items()):
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            flat = tensor.detach().cpu().contiguous().flatten()
            found.update(flat.view(torch.uint8).numpy().tobytes())
    return found.digest()

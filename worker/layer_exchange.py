"""Layers from worker to worker, over the data plane of the plan that is being loaded.

A layer travels as the files that a checkpoint would have of it, end to end. Each of its donors sends an
equal part, in pieces, every part behind a header with the sizes and the hash of the whole: so parts of
several donors fit together only if all of them hold the same bits. A donor that is lost ends the plan; the
next one begins with the layers that have arrived.

    part:   header (weights Q, state Q, sha256 32s) and the first piece | piece | ...
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence

from torch import Tensor

from worker.checkpoint import LayerFileError, from_bytes, to_bytes
from worker.held_layers import HeldLayer
from worker.transport import Frame, FrameError, FrameKey, Transport

PIECE_BYTES = 32 << 20
"""Of one frame: half of what may be on its way without being consumed."""
_HEADER = struct.Struct("<QQ32s")


def packed(layer: HeldLayer) -> memoryview:
    """Header and files of a layer, end to end."""
    weights = to_bytes(layer.weights)
    state = to_bytes(layer.state) if layer.state else b""
    body = weights + state
    return memoryview(_HEADER.pack(len(weights), len(state), hashlib.sha256(body).digest()) + body)


def bounds(n_bytes: int, part: int, parts: int) -> tuple[int, int]:
    """[start, stop) of a part of so many bytes."""
    return n_bytes * part // parts, n_bytes * (part + 1) // parts


def send_part(
    transport: Transport,
    plan_version: int,
    src: int,
    dst: int,
    key: tuple[int, int],
    layer: memoryview,
    part: tuple[int, int],
) -> None:
    """Send part (i, of n) of a `packed` layer. `key`: (step, layer). Raises what the transport raises."""
    step, index = key
    header, body = layer[: _HEADER.size], layer[_HEADER.size :]
    start, stop = bounds(len(body), *part)
    for piece, at in enumerate(range(start, max(stop, start + 1), PIECE_BYTES)):
        data = body[at : min(at + PIECE_BYTES, stop)]
        payload = [header, data] if piece == 0 else [data]
        shape = (sum(p.nbytes for p in payload),)
        frame_key = FrameKey("layer", step, piece, src, index)
        transport.send(Frame(frame_key, dst, plan_version, "identity", "uint8", shape, payload))


def receive_layer(
    transport: Transport, donors: Sequence[int], step: int, layer: int, most_bytes: int, timeout_s: float
) -> HeldLayer:
    """The layer, from the ranks of its donors in the order of their parts.

    Raises LayerFileError if the parts do not make one layer, FrameError for a size that cannot be, and what
    the transport raises.
    """
    header, body = b"", bytearray()
    for part, donor in enumerate(donors):
        first = _bytes_of(transport, FrameKey("layer", step, 0, donor, layer), timeout_s)
        if len(first) < _HEADER.size or (header and first[: _HEADER.size] != header):
            raise LayerFileError(
                f"layer {layer} after step {step}: its donors do not hold the same bits; required"
                " one state of all replicas: go back to a checkpoint with --resume-step"
            )
        header = first[: _HEADER.size]
        n_weights, n_state, _ = _HEADER.unpack(header)
        if n_weights + n_state > most_bytes:
            raise FrameError(
                f"layer {layer}: found {n_weights + n_state} bytes, required at most {most_bytes}"
            )
        start, stop = bounds(n_weights + n_state, part, len(donors))
        body += first[_HEADER.size :]
        for piece in range(1, -(-(stop - start) // PIECE_BYTES)):
            body += _bytes_of(transport, FrameKey("layer", step, piece, donor, layer), timeout_s)
        if len(body) != stop:
            raise FrameError(f"layer {layer}: found {len(body)} bytes after part {part}, required {stop}")
    n_weights, n_state, sha256 = _HEADER.unpack(header)
    if hashlib.sha256(body).digest() != sha256:
        raise LayerFileError(f"layer {layer} after step {step}: found another hash than its donors named")
    name = f"layer {layer} from a peer"
    weights: Mapping[str, Tensor] = from_bytes(bytes(body[:n_weights]), name)
    state: Mapping[str, Tensor] = from_bytes(bytes(body[n_weights:]), name) if n_state else {}
    return HeldLayer(weights, state)


def _bytes_of(transport: Transport, key: FrameKey, timeout_s: float) -> bytes:
    return b"".join(transport.receive(key, timeout_s).payload)

"""Sending an activation again, whole, to a peer whose codec does not remember what a change was made to.

The peer waits in the middle of its step while this rank computes, so a thread answers. It ends with the
transport. Knows which tensors may still be asked for; refuses to know why somebody asks.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compression.codec import ActivationDeltaCodec, Encoded, IdentityCodec, Key
from worker.transport import Frame, FrameKey, Transport, TransportAborted, TransportTimeout

PATIENCE_S = 3600.0
"""Waiting for a request ends with the transport; this only bounds one wait."""

AGAIN_TAG = 1
"""Of a frame that was asked for; the first try has 0."""


@dataclass(frozen=True, slots=True)
class _Kept:
    frame: Frame
    x: Tensor
    samples: Key
    codec: ActivationDeltaCodec


class Resends:
    """One rank's tensors that peers may ask for again, from when they are sent until they must have come."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._lock = threading.Lock()
        self._kept: dict[FrameKey, _Kept] = {}
        self._listening: set[int] = set()

    def keep(self, frame: Frame, x: Tensor, samples: Key, codec: ActivationDeltaCodec) -> None:
        """To be called before `frame` is sent. `x` is held, not copied."""
        with self._lock:
            self._kept[frame.key] = _Kept(frame, x, samples, codec)
            if frame.dst not in self._listening:
                self._listening.add(frame.dst)
                name = f"resend-{frame.key.src}-{frame.dst}"
                threading.Thread(target=self._listen, args=(frame.dst,), name=name, daemon=True).start()

    def forget(self, dst: int, mb: int) -> None:
        """`dst` has read micro-batch `mb`."""
        with self._lock:
            self._kept = {k: v for k, v in self._kept.items() if v.frame.dst != dst or v.frame.key.mb != mb}

    def clear(self) -> None:
        """The step is over."""
        with self._lock:
            self._kept.clear()

    def _listen(self, peer: int) -> None:
        asked = FrameKey("resend", 0, 0, peer)
        codec = IdentityCodec()
        while True:
            try:
                frame = self._transport.receive(asked, PATIENCE_S)
                step, mb = codec.decode(encoded_of(frame), ()).tolist()
                self._answer(peer, step, mb)
            except TransportTimeout:
                continue
            except TransportAborted:
                return

    def _answer(self, peer: int, step: int, mb: int) -> None:
        with self._lock:
            kept = next((v for k, v in self._kept.items() if _is(k, step, mb) and v.frame.dst == peer), None)
        if kept is None:
            return  # asked for twice, or by a peer of an earlier step: it has come, or the peer gave up
        encoded = kept.codec.encode_first(kept.x, kept.samples)
        self._transport.send(frame_of(again(kept.frame.key), peer, kept.frame.plan_version, encoded))


def _is(key: FrameKey, step: int, mb: int) -> bool:
    return key.step == step and key.mb == mb


def request(transport: Transport, rank: int, plan_version: int, key: FrameKey) -> None:
    """Ask the sender of the frame `key` for it again."""
    encoded = IdentityCodec().encode(torch.tensor([key.step, key.mb]), ())
    transport.send(frame_of(FrameKey("resend", 0, 0, rank), key.src, plan_version, encoded))


def again(key: FrameKey) -> FrameKey:
    """The key of the same tensor when it comes because it was asked for."""
    return replace(key, tag=AGAIN_TAG)


def frame_of(key: FrameKey, dst: int, plan_version: int, encoded: Encoded) -> Frame:
    """What a codec made, as a frame."""
    return Frame(
        key=key,
        dst=dst,
        plan_version=plan_version,
        codec=encoded.codec,
        dtype=encoded.dtype,
        shape=encoded.shape,
        payload=encoded.payload,
        buffer_version=encoded.buffer_version,
    )


def encoded_of(frame: Frame) -> Encoded:
    """Inverse of `frame_of`."""
    return Encoded(frame.payload, frame.dtype, frame.shape, frame.codec, frame.buffer_version)

"""The data plane's contract: frames between ranks of one plan.

Two transports implement it: `memory_transport.py` (ranks of one process) and `zmq_transport.py`.

Knows tensors only as bytes with a shape and a dtype name. Refuses to know what a frame is
for, how it was compressed, or where a peer lives (that is `zmq_transport.py`'s matter).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

KINDS = (
    "activation",
    "gradient",
    "shard",
    "reduced",
    "tied",
    "layer",
    "eval",
    "probe",
    "echo",
    "resend",
    "keys",
    "owed",
    "check",
    "followed",
)
"""Kinds of frame; their index travels as a byte."""

_BESIDE = 1 << 62


def beside(number: int) -> int:
    """The version of what goes on beside the plans, between ranks of its own: no plan makes it stale, nor it
    a plan. Later ones have higher numbers."""
    return _BESIDE | number


def is_beside(version: int) -> bool:
    return version >= _BESIDE


class TransportError(Exception):
    """Root of what a transport raises: TransportAborted | TransportTimeout | FrameError | PeerUnreachable."""


class TransportAborted(TransportError):
    """The plan was ended (a peer is lost, a new plan came); says why."""


class TransportTimeout(TransportError):
    """A frame did not come by its deadline; names the frame, the sender and the time waited."""


class FrameError(TransportError):
    """A frame that is truncated, too large, of an unknown version or otherwise not what it must be."""


class PeerUnreachable(TransportError):
    """A peer's address does not answer; names peer, address and port."""


@dataclass(frozen=True, slots=True)
class FrameKey:
    """What a receiver waits for. `tag` tells frames of one kind apart (a layer's index, a shard's)."""

    kind: str
    step: int
    mb: int
    src: int
    tag: int = 0


@dataclass(frozen=True, slots=True)
class Frame:
    """One message: the key it is looked up by, how to read the payload, and the payload.

    `codec` and `dtype` are names; `shape` is the decoded tensor's. `payload` is one buffer or
    several that follow one another (packed values, scales); buffers are not copied on sending,
    so their owner must not write to them afterwards.
    """

    key: FrameKey
    dst: int
    plan_version: int
    codec: str
    dtype: str
    shape: tuple[int, ...]
    payload: Sequence[memoryview]
    buffer_version: int = 0
    arrived_s: float = field(default=0.0, compare=False)
    """On a received frame: time.monotonic() when all of it had arrived; 0: not known."""

    @property
    def n_bytes(self) -> int:
        return sum(p.nbytes for p in self.payload)


@dataclass(slots=True)
class LinkStats:
    """Counters of one directed link since the transport was opened."""

    frames: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    dropped_stale: int = 0
    dropped_corrupt: int = 0


@dataclass(slots=True)
class TransportStats:
    links: dict[int, LinkStats] = field(default_factory=dict)
    """By peer rank; -1 holds what could not be traced to a sender."""

    def copy(self) -> TransportStats:
        """The counters as they are now; they do not change any more."""
        return TransportStats({rank: replace(link) for rank, link in self.links.items()})


class Transport(Protocol):
    """Frames between the ranks of one plan. Methods may be called from several threads."""

    def send(self, frame: Frame) -> None:
        """Hand a frame over and return at once; blocks only when this (peer, kind) has more than its
        cap of unsent bytes (each kind has its own credit, so kinds cannot block each other)."""

    def receive(self, key: FrameKey, timeout_s: float) -> Frame:
        """Wait for a frame. Raises TransportAborted, TransportTimeout."""

    def ready(self, key: FrameKey) -> bool:
        """Whether `receive` would return at once."""

    def abort(self, reason: str) -> None:
        """Wake every waiting call with TransportAborted(reason); later calls raise it too."""

    def stats(self) -> TransportStats:
        """The counters so far."""

    def close(self) -> None:
        """Release sockets and threads. Idempotent."""

"""How much the data plane may hold: every buffer and queue of a transport has its cap here.

Plain numbers, shared by all transports. Both ends of a link should use the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from worker.transport import Frame

KIB = 1 << 10
MIB = 1 << 20

FRAME_OVERHEAD_BYTES = 256
"""What a frame costs beside its payload, so that a flood of empty frames is bounded too."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Caps of one transport, in bytes. Raises ValueError when one is not positive."""

    credit_bytes: int = 64 * MIB
    """Of one (peer, kind): sent and not yet consumed there. Must cover bandwidth x round trip:
    1 Gbit/s x 200 ms = 25 MB. One frame larger than this travels alone."""
    queue_bytes: int = 256 * MIB
    """Of one (peer, kind): accepted by `send` and waiting for credit; above it `send` blocks."""
    frame_bytes: int = 1024 * MIB
    """The largest payload that is sent or taken."""
    chunk_bytes: int = 512 * KIB
    """The largest piece that a frame is cut into (`striping.piece_bytes`). At this size a copy into
    ZeroMQ stays in the cache, and a piece costs little beside its bytes."""
    inbound_bytes: int = 4096 * MIB
    """Of a whole endpoint: frames half received, or held for a plan that is not open yet."""
    payload_crc: bool = False
    """Whether payloads carry a checksum too. CRC-32 runs at about the rate of a loopback link
    (1.2 GB/s here), so it is left to TCP and CURVE unless it is asked for; headers always have one."""

    def __post_init__(self) -> None:
        for name in ("credit_bytes", "queue_bytes", "frame_bytes", "chunk_bytes", "inbound_bytes"):
            if getattr(self, name) <= 0:
                raise ValueError(f"Limits.{name}: found {getattr(self, name)}, required more than 0")


def cost_bytes(frame: Frame) -> int:
    """What a frame takes of its lane's credit; both ends compute the same."""
    return frame.n_bytes + FRAME_OVERHEAD_BYTES

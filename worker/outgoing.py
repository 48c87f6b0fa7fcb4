"""What every transport asks of a frame before it takes it, so that a mistake fails at the sender."""

from __future__ import annotations

from worker.limits import Limits
from worker.transport import KINDS, Frame, FrameError
from worker.wire import MAX_PARTS


def check_outgoing(frame: Frame, rank: int, plan_version: int, limits: Limits) -> None:
    """Raises FrameError when a frame is not this rank's, not of this plan, or above its caps."""
    key = frame.key
    if key.kind not in KINDS:
        raise FrameError(f"kind: found {key.kind!r}, required one of {', '.join(KINDS)}")
    if key.src != rank or frame.dst == rank:
        raise FrameError(f"{key} to rank {frame.dst}: required sender {rank} and another rank as destination")
    if frame.plan_version != plan_version:
        raise FrameError(f"{key}: found plan version {frame.plan_version}, required {plan_version}")
    if frame.n_bytes > limits.frame_bytes:
        raise FrameError(f"{key}: found {frame.n_bytes} bytes, required at most {limits.frame_bytes}")
    if len(frame.payload) > MAX_PARTS:
        raise FrameError(f"{key}: found {len(frame.payload)} parts, required at most {MAX_PARTS}")

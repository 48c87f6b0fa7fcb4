"""A tensor on its way in: waited for, checked, decoded; asked for again where the codec cannot follow.

Runs on the rank's thread or on a lane's; knows neither which, nor what a tensor is for.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

import torch
from torch import Tensor

from compression.codec import DTYPES, Codec, CodecError, Drifted, Key
from worker.recorder import Recorder
from worker.resend import again, encoded_of, request
from worker.step_context import StepContext
from worker.transport import Frame, FrameError, FrameKey

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Incoming:
    """A tensor that must come, and how it must look."""

    key: FrameKey
    shape: tuple[int, ...]
    dtype: torch.dtype
    mb: int = -1
    samples: Key = ()


class Receiver:
    """What one rank receives in one step."""

    def __init__(self, context: StepContext, recorder: Recorder) -> None:
        self._context, self._recorder = context, recorder

    def fetch(self, codec: Codec, what: Incoming) -> Tensor:
        """Wait for the frame and decode it, for a lane: without a span for the wait, and without a deadline,
        for nobody may be waiting yet."""
        frame = self._context.transport.receive(what.key, threading.TIMEOUT_MAX)
        return self.decode(codec, frame, what, quiet=False)

    def wait(self, what: Incoming, quiet: bool) -> Frame:
        """The frame; what the rank's thread waits for it is written down."""
        recorder, transport, key = self._recorder, self._context.transport, what.key
        was_there = transport.ready(key)
        start_s = recorder.now_s()
        frame = self._receive(key)
        waited_s = recorder.now_s() - start_s
        if was_there:
            recorder.late_s += waited_s
        else:
            if frame.arrived_s:
                late_s = recorder.now_s() - recorder.at_s(frame.arrived_s)
                recorder.late_s += min(max(late_s, 0.0), waited_s)
            if not quiet:
                recorder.add("wait", start_s, what.mb, key.src)
        return frame

    def decode(self, codec: Codec, frame: Frame, what: Incoming, quiet: bool) -> Tensor:
        """The tensor, on the rank's device. Raises FrameError for one that is not what it must be."""
        context, recorder, kind, src = self._context, self._recorder, frame.key.kind, frame.key.src
        start_s = recorder.now_s()
        if frame.shape != what.shape or DTYPES.get(frame.dtype) != what.dtype:
            raise FrameError(
                f"{_named(frame.key)}: found {frame.dtype} {frame.shape}; required"
                f" {str(what.dtype).removeprefix('torch.')} {what.shape}: do both ranks run the same job?"
            )
        sample_key = what.samples or (frame.key.tag,)
        try:
            try:
                x = codec.decode(encoded_of(frame), sample_key)
            except Drifted as e:
                recorder.link(kind, src).resends += 1
                log.warning("%s: %s; it is asked for again, whole", _named(frame.key), e)
                x = codec.decode(encoded_of(self._once_more(frame.key)), sample_key)
        except CodecError as e:
            raise FrameError(f"{_named(frame.key)}: {e}") from e
        if kind == "gradient" and context.codecs.resends is not None:
            context.codecs.resends.forget(src, what.mb)  # whoever sent this has read the activation
        x = x.to(context.device)
        link = recorder.link(kind, src)
        link.codec = frame.codec
        link.decode_s += recorder.now_s() - start_s
        if not quiet:
            recorder.add("decode", start_s, what.mb, src, frame.n_bytes)
        return x

    def _receive(self, key: FrameKey) -> Frame:
        return self._context.transport.receive(key, self._context.receive_timeout_s)

    def _once_more(self, key: FrameKey) -> Frame:
        """Have the sender send the tensor whole, and wait for it."""
        context = self._context
        request(context.transport, context.rank, context.plan.version, key)
        return self._receive(again(key))


def _named(key: FrameKey) -> str:
    return f"{key.kind} of step {key.step}, micro-batch {key.mb}, tag {key.tag} from rank {key.src}"

"""Tensors to and from the other ranks of one step: codecs, frame keys, deadlines, spans.

Knows neither what a tensor is for nor how a frame travels.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from compression.codec import (
    DTYPES,
    ActivationDeltaCodec,
    CodecError,
    Drifted,
    Encoded,
    Key,
    NotFinite,
)
from scheduler.job import JobSpec
from scheduler.plan import Plan
from worker.diverged import Diverged
from worker.link_codecs import EVERYBODY, LinkCodecs
from worker.recorder import Recorder
from worker.resend import Resends, again, encoded_of, frame_of, request
from worker.transport import Frame, FrameError, FrameKey, Transport

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StepContext:
    """What a rank needs to run the steps of one plan; the same for every step of it."""

    plan: Plan
    rank: int
    job: JobSpec
    transport: Transport
    codecs: LinkCodecs
    receive_timeout_s: float
    """How long a tensor may keep this rank waiting before the step fails."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def stage(self) -> int:
        return self.plan.stage_of(self.rank)

    @property
    def replica(self) -> int:
        return self.plan.replica_of(self.rank)


class Peers:
    """The others, as seen from one rank in one step."""

    def __init__(self, context: StepContext, step: int, recorder: Recorder) -> None:
        self._context, self._step, self._recorder = context, step, recorder

    def send(
        self,
        kind: str,
        dst: int,
        x: Tensor,
        mb: int = -1,
        tag: int = 0,
        samples: Key = (),
        quiet: bool = False,
    ) -> None:
        """Hand `x` over and return; `x` must not be written to any more. `quiet`: without spans.

        Raises Diverged for a value that is not finite where a codec had to look.
        """
        encoded = self._encode(kind, dst, x, mb, tag, samples, quiet)
        codec = self._context.codecs.sender(kind, dst)
        if isinstance(codec, ActivationDeltaCodec):
            frame = self._frame(kind, dst, encoded, mb, tag)
            self._resends().keep(frame, x, samples, codec)
        self._hand_over(kind, dst, encoded, x, mb, tag, quiet)

    def broadcast(self, kind: str, peers: Sequence[int], x: Tensor, tag: int = 0) -> Tensor:
        """Send `x` to several, encoded once; what they make of it, so that all go on with the same bits."""
        encoded = self._encode(kind, EVERYBODY, x, -1, tag, (), quiet=True)
        for dst in peers:
            self._hand_over(kind, dst, encoded, x, -1, tag, quiet=True)
        codec = self._context.codecs.sender(kind, EVERYBODY)
        return x if encoded.codec == "identity" else codec.echo(encoded, (tag,)).to(x.device)

    def _encode(
        self, kind: str, dst: int, x: Tensor, mb: int, tag: int, samples: Key, quiet: bool
    ) -> Encoded:
        context, recorder = self._context, self._recorder
        codec, key = context.codecs.sender(kind, dst), samples or (tag,)
        start_s = recorder.now_s()
        try:
            encoded = codec.encode(x, key)
        except NotFinite as e:
            raise Diverged(f"{self._sent(kind, dst, mb, tag)}: {e}") from e
        if not quiet:
            recorder.add("encode", start_s, mb, dst)
        link = recorder.link(kind, dst)
        link.codec = encoded.codec
        link.encode_s += recorder.now_s() - start_s
        if recorder.measures_errors and encoded.codec != "identity":
            value = x.detach().double()
            link.error_squares += float((codec.echo(encoded, key).to(value) - value).square().sum())
            link.value_squares += float(value.square().sum())
        return encoded

    def _hand_over(
        self, kind: str, dst: int, encoded: Encoded, x: Tensor, mb: int, tag: int, quiet: bool
    ) -> None:
        context, recorder = self._context, self._recorder
        frame = self._frame(kind, dst, encoded, mb, tag)
        start_s = recorder.now_s()
        context.transport.send(frame)
        link = recorder.link(kind, dst)
        link.codec = encoded.codec
        link.sent_bytes += encoded.n_bytes
        link.raw_bytes += x.numel() * x.element_size()
        if not quiet:
            recorder.add("send", start_s, mb, dst, encoded.n_bytes)

    def _frame(self, kind: str, dst: int, encoded: Encoded, mb: int, tag: int) -> Frame:
        key = FrameKey(kind, self._step, max(mb, 0), self._context.rank, tag)
        return frame_of(key, dst, self._context.plan.version, encoded)

    def _resends(self) -> Resends:
        codecs = self._context.codecs
        if codecs.resends is None:
            codecs.resends = Resends(self._context.transport)
        return codecs.resends

    def _sent(self, kind: str, dst: int, mb: int, tag: int) -> str:
        """`step 3, stage 1 (rank 1), activation behind layer 4 of micro-batch 2 to rank 2`, for errors."""
        context = self._context
        first, stop = context.plan.partition[context.stage]
        match kind:
            case "activation":
                what = f"activation behind layer {stop - 1} of micro-batch {mb}"
            case "gradient":
                what = f"gradient before layer {first} of micro-batch {mb}"
            case _:
                what = f"{kind} gradient of layer {tag}"
        to = "its replicas" if dst == EVERYBODY else f"rank {dst}"
        return f"step {self._step}, stage {context.stage} (rank {context.rank}), {what} to {to}"

    def ready(self, kind: str, src: int, mb: int = -1, tag: int = 0) -> bool:
        """Whether `receive` would return at once."""
        return self._context.transport.ready(FrameKey(kind, self._step, max(mb, 0), src, tag))

    def receive(
        self,
        kind: str,
        src: int,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        mb: int = -1,
        tag: int = 0,
        samples: Key = (),
        quiet: bool = False,
    ) -> Tensor:
        """Wait for a tensor that must be of this shape and type; it is on the rank's device, to be read only.

        Raises TransportAborted, TransportTimeout, and FrameError for one that is not what it must be.
        """
        context, recorder = self._context, self._recorder
        frame = self._wait(FrameKey(kind, self._step, max(mb, 0), src, tag), mb, quiet)
        start_s = recorder.now_s()
        if frame.shape != shape or DTYPES.get(frame.dtype) != dtype:
            raise FrameError(
                f"{_named(frame.key)}: found {frame.dtype} {frame.shape}; required"
                f" {str(dtype).removeprefix('torch.')} {shape}: do both ranks run the same job?"
            )
        codec, key = context.codecs.receiver(kind, src), samples or (tag,)
        try:
            try:
                x = codec.decode(encoded_of(frame), key)
            except Drifted as e:
                recorder.link(kind, src).resends += 1
                log.warning("%s: %s; it is asked for again, whole", _named(frame.key), e)
                x = codec.decode(encoded_of(self._once_more(frame.key)), key)
        except CodecError as e:
            raise FrameError(f"{_named(frame.key)}: {e}") from e
        if kind == "gradient" and context.codecs.resends is not None:
            context.codecs.resends.forget(src, mb)  # whoever sent this has read the activation
        x = x.to(context.device)
        link = recorder.link(kind, src)
        link.codec = frame.codec
        link.decode_s += recorder.now_s() - start_s
        if not quiet:
            recorder.add("decode", start_s, mb, src)
        return x

    def _once_more(self, key: FrameKey) -> Frame:
        """Have the sender send the tensor whole, and wait for it."""
        context = self._context
        request(context.transport, context.rank, context.plan.version, key)
        return context.transport.receive(again(key), context.receive_timeout_s)

    def _wait(self, key: FrameKey, mb: int, quiet: bool) -> Frame:
        recorder, transport = self._recorder, self._context.transport
        was_there = transport.ready(key)
        start_s = recorder.now_s()
        frame = transport.receive(key, self._context.receive_timeout_s)
        waited_s = recorder.now_s() - start_s
        if was_there:
            recorder.late_s += waited_s
        else:
            if frame.arrived_s:
                late_s = recorder.now_s() - recorder.at_s(frame.arrived_s)
                recorder.late_s += min(max(late_s, 0.0), waited_s)
            if not quiet:
                recorder.add("wait", start_s, mb, key.src)
        return frame


def _named(key: FrameKey) -> str:
    return f"{key.kind} of step {key.step}, micro-batch {key.mb}, tag {key.tag} from rank {key.src}"

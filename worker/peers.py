"""Tensors to and from the other ranks of one step: codecs, frame keys, deadlines, spans.

Knows neither what a tensor is for nor how a frame travels.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from compression.codec import DTYPES, Codec, CodecError, Encoded, Key, make_codec
from scheduler.job import CompressionSpec, JobSpec
from scheduler.plan import Plan
from worker.recorder import Recorder
from worker.transport import Frame, FrameError, FrameKey, Transport


class LinkCodecs:
    """The codecs of one rank: one for each (kind of frame, peer), kept from step to step."""

    def __init__(self, spec: CompressionSpec) -> None:
        self._names = {"activation": spec.activations, "gradient": spec.gradients}
        self._codecs: dict[tuple[str, int], Codec] = {}

    def of(self, kind: str, peer: int) -> Codec:
        """What compresses frames of `kind` to or from `peer`; identity where the job names no codec."""
        if (kind, peer) not in self._codecs:
            self._codecs[kind, peer] = make_codec(self._names.get(kind, "identity"))
        return self._codecs[kind, peer]

    def reset(self) -> None:
        """Forget all samples, as for a new plan."""
        for codec in self._codecs.values():
            codec.reset()


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
        """Hand `x` over and return; `x` must not be written to any more. `quiet`: without spans."""
        context, recorder = self._context, self._recorder
        start_s = recorder.now_s()
        encoded = context.codecs.of(kind, dst).encode(x, samples)
        if not quiet:
            recorder.add("encode", start_s, mb, dst)
        frame = Frame(
            key=FrameKey(kind, self._step, max(mb, 0), context.rank, tag),
            dst=dst,
            plan_version=context.plan.version,
            codec=encoded.codec,
            dtype=encoded.dtype,
            shape=encoded.shape,
            payload=encoded.payload,
            buffer_version=encoded.buffer_version,
        )
        start_s = recorder.now_s()
        context.transport.send(frame)
        recorder.sent_bytes += encoded.n_bytes
        recorder.raw_bytes += x.numel() * x.element_size()
        if not quiet:
            recorder.add("send", start_s, mb, dst, encoded.n_bytes)

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
        encoded = Encoded(frame.payload, frame.dtype, frame.shape, frame.codec, frame.buffer_version)
        try:
            x = context.codecs.of(kind, src).decode(encoded, samples)
        except CodecError as e:
            raise FrameError(f"{_named(frame.key)}: {e}") from e
        x = x.to(context.device)
        if not quiet:
            recorder.add("decode", start_s, mb, src)
        return x

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

"""Tensors to and from the other ranks of one step: codecs, frame keys, deadlines, spans.

What a codec changes is encoded and decoded beside the rank's thread (`beside.py`): one lane encodes, and
what is announced by `expect` is received and decoded ahead, a lane for each kind and peer. What travels
as it is stays on the rank's thread, where it costs nothing. Knows neither what a tensor is for nor how a
frame travels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TypeVar

import torch
from torch import Tensor

from compression.codec import Codec, IdentityCodec, Key
from worker.beside import Beside, Job
from worker.link_codecs import EVERYBODY
from worker.mailbox import name
from worker.receiver import Incoming, Receiver
from worker.recorder import Recorder
from worker.sender import Outgoing, Sender
from worker.step_context import StepContext
from worker.transport import FrameKey, TransportTimeout

DECODED_AHEAD = 2
"""Tensors of one kind from one peer that are decoded before they are asked for: one that is used next,
one behind it. What has come beyond that waits in its frames, where it is small and under credit."""

T = TypeVar("T")


class Peers:
    """The others, as seen from one rank in one step. A context: leaving it ends what runs beside."""

    def __init__(self, context: StepContext, step: int, recorder: Recorder) -> None:
        self._context, self._step, self._recorder = context, step, recorder
        self._sender, self._receiver = Sender(context, step, recorder), Receiver(context, recorder)
        self._beside = Beside(recorder.now_s, self._failed)
        self._expected: dict[FrameKey, Job[Tensor]] = {}

    def __enter__(self) -> Peers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._beside.__exit__(kind, error, trace)

    # ---- out

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
        """Hand `x` over and return; `x` must not be written to any more. `quiet`: without spans, where
        it is done on the rank's thread.

        Raises Diverged for a value that is not finite where a codec had to look: in time before `flush`
        returns, perhaps not here.
        """
        codec, out = (
            self._context.codecs.sender(kind, dst, self._step),
            Outgoing(kind, dst, x, mb, tag, samples),
        )
        if isinstance(codec, IdentityCodec):
            self._sender.send(codec, out, quiet)
        else:
            self._encode(out, lambda: self._sender.send(codec, out))

    def broadcast(self, kind: str, peers: Sequence[int], x: Tensor, tag: int = 0) -> Callable[[], Tensor]:
        """Send `x` to several, encoded once. What is returned waits for, and gives, what they make of it,
        so that all go on with the same bits."""
        codec, out = (
            self._context.codecs.sender(kind, EVERYBODY, self._step),
            Outgoing(kind, EVERYBODY, x, tag=tag),
        )
        if isinstance(codec, IdentityCodec):
            read = self._sender.broadcast(codec, out, peers, quiet=True)
            return lambda: read
        job = self._encode(out, lambda: self._sender.broadcast(codec, out, peers))
        return lambda: self._beside.result(job)

    def flush(self) -> None:
        """Wait until everything that was sent is with the transport. Raises what encoding it raised."""
        self._beside.flush()

    def _encode(self, out: Outgoing, work: Callable[[], T]) -> Job[T]:
        """Stage boundaries before weights' gradients: the next stage waits for them."""
        before = out.x._version

        def checked() -> T:
            done = work()
            if out.x._version != before:
                raise RuntimeError(f"{out.kind} to rank {out.dst}: it was written to while it was encoded")
            return done

        return self._beside.submit("encode", checked, urgent=out.mb >= 0, n_bytes=out.n_bytes)

    # ---- in

    def expect(
        self,
        kind: str,
        src: int,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        mb: int = -1,
        tag: int = 0,
        samples: Key = (),
    ) -> None:
        """This will be received: decode it when it comes. To be told in the order in which it is sent."""
        codec = self._context.codecs.receiver(kind, src, self._step)
        if isinstance(codec, IdentityCodec):
            return
        what = Incoming(self._key(kind, src, mb, tag), shape, dtype, mb, samples)
        self._expected[what.key] = self._decode_ahead(codec, what)

    def _decode_ahead(self, codec: Codec, what: Incoming) -> Job[Tensor]:
        lane = f"decode {what.key.kind} {what.key.src}"
        return self._beside.submit(lane, lambda: self._receiver.fetch(codec, what), ahead=DECODED_AHEAD)

    def ready(self, kind: str, src: int, mb: int = -1, tag: int = 0) -> bool:
        """Whether `receive` would return at once."""
        key = self._key(kind, src, mb, tag)
        job = self._expected.get(key)
        return job.done if job is not None else self._context.transport.ready(key)

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
        what = Incoming(self._key(kind, src, mb, tag), shape, dtype, mb, samples)
        job = self._expected.pop(what.key, None)
        self._context.waiting.rank = src
        if job is not None:
            x = self._decoded(job, what, quiet)
            self._context.waiting.rank = None
            return x
        frame = self._receiver.wait(what, quiet)
        self._context.waiting.rank = None
        return self._receiver.decode(self._context.codecs.receiver(kind, src, self._step), frame, what, quiet)

    def _decoded(self, job: Job[Tensor], what: Incoming, quiet: bool) -> Tensor:
        """What a lane decodes; what the rank's thread waits for it is written down."""
        recorder, was_there, start_s = self._recorder, job.done, self._recorder.now_s()
        timeout_s = self._context.receive_timeout_s
        try:
            x = self._beside.result(job, timeout_s)
        except TimeoutError:
            raise TransportTimeout(
                f"waited {timeout_s:g} s for {name(what.key)} from rank {what.key.src}, or for its decoding"
            ) from None
        recorder.late_s += max(0.0, recorder.now_s() - max(job.done_s, start_s))
        if not was_there and not quiet:
            recorder.add("wait", start_s, what.mb, what.key.src)
        return x

    # ----

    def _key(self, kind: str, src: int, mb: int, tag: int) -> FrameKey:
        return FrameKey(kind, self._step, max(mb, 0), src, tag)

    def _failed(self, error: BaseException) -> None:
        """Something that ran beside failed, or the rank did: whatever waits for a frame is woken."""
        self._context.transport.abort(f"rank {self._context.rank} failed in step {self._step}: {error}")

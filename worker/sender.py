"""A tensor on its way out: encoded, made a frame, handed to the transport, and counted.

Runs on the rank's thread or on a lane's; knows neither which, nor what a tensor is for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from compression.codec import ActivationDeltaCodec, Codec, Encoded, Key, NotFinite
from worker.diverged import Diverged
from worker.link_codecs import EVERYBODY
from worker.recorder import Recorder
from worker.resend import Resends, frame_of
from worker.step_context import StepContext
from worker.transport import Frame, FrameKey


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A tensor and where it goes; nobody may write to `x` any more."""

    kind: str
    dst: int
    """A rank, or EVERYBODY: encoded once for several."""
    x: Tensor
    mb: int = -1
    tag: int = 0
    samples: Key = ()

    @property
    def n_bytes(self) -> int:
        return self.x.numel() * self.x.element_size()


class Sender:
    """What one rank sends in one step."""

    def __init__(self, context: StepContext, step: int, recorder: Recorder) -> None:
        self._context, self._step, self._recorder = context, step, recorder

    def send(self, codec: Codec, out: Outgoing, quiet: bool = False) -> None:
        """To one rank. Raises Diverged for a value that is not finite where the codec had to look."""
        encoded = self.encode(codec, out, quiet)
        if isinstance(codec, ActivationDeltaCodec):
            frame = self._frame(out, out.dst, encoded)
            self._resends().keep(frame, out.x, out.samples, codec)
        self._hand_over(out, out.dst, encoded, quiet)

    def broadcast(self, codec: Codec, out: Outgoing, peers: Sequence[int], quiet: bool = False) -> Tensor:
        """Encoded once, to all `peers`; returns what they make of it."""
        encoded = self.encode(codec, out, quiet)
        for dst in peers:
            self._hand_over(out, dst, encoded, quiet=True)
        return out.x if encoded.codec == "identity" else codec.echo(encoded, (out.tag,)).to(out.x.device)

    def encode(self, codec: Codec, out: Outgoing, quiet: bool) -> Encoded:
        recorder, key, x = self._recorder, out.samples or (out.tag,), out.x
        start_s = recorder.now_s()
        try:
            encoded = codec.encode(x, key)
        except NotFinite as e:
            raise Diverged(f"{self._described(out)}: {e}") from e
        if not quiet:
            recorder.add("encode", start_s, out.mb, out.dst, encoded.n_bytes)
        link = recorder.link(out.kind, out.dst)
        link.codec = encoded.codec
        link.encode_s += recorder.now_s() - start_s
        if recorder.measures_errors and encoded.codec != "identity":
            value = x.detach().double()
            link.error_squares += float((codec.echo(encoded, key).to(value) - value).square().sum())
            link.value_squares += float(value.square().sum())
        return encoded

    def _hand_over(self, out: Outgoing, dst: int, encoded: Encoded, quiet: bool) -> None:
        recorder = self._recorder
        start_s = recorder.now_s()
        self._context.transport.send(self._frame(out, dst, encoded))
        link = recorder.link(out.kind, dst)
        link.codec = encoded.codec
        link.sent_bytes += encoded.n_bytes
        link.raw_bytes += out.n_bytes
        if not quiet:
            recorder.add("send", start_s, out.mb, dst, encoded.n_bytes)

    def _frame(self, out: Outgoing, dst: int, encoded: Encoded) -> Frame:
        key = FrameKey(out.kind, self._step, max(out.mb, 0), self._context.rank, out.tag)
        return frame_of(key, dst, self._context.plan.version, encoded)

    def _resends(self) -> Resends:
        codecs = self._context.codecs
        if codecs.resends is None:
            codecs.resends = Resends(self._context.transport)
        return codecs.resends

    def _described(self, out: Outgoing) -> str:
        """`step 3, stage 1 (rank 1), activation behind layer 4 of micro-batch 2 to rank 2`, for errors."""
        context = self._context
        first, stop = context.plan.partition[context.stage]
        match out.kind:
            case "activation":
                what = f"activation behind layer {stop - 1} of micro-batch {out.mb}"
            case "gradient":
                what = f"gradient before layer {first} of micro-batch {out.mb}"
            case _:
                what = f"{out.kind} gradient of layer {out.tag}"
        to = "its replicas" if out.dst == EVERYBODY else f"rank {out.dst}"
        return f"step {self._step}, stage {context.stage} (rank {context.rank}), {what} to {to}"

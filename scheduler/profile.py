"""What a layer costs: seconds on a device, bytes, flops. Measured elsewhere; carried and scaled here."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from scheduler.codec_speed import CodecSpeed
from scheduler.visits import UNKNOWN, Visits


@dataclass(frozen=True, slots=True)
class LayerProfile:
    """One layer of the model, for one micro-batch of the job's size. Device-independent.

    `boundary_bytes` is what crosses to the next layer (uncompressed, the job's wire dtype);
    `saved_bytes` what forward keeps for backward; `state_bytes` the optimizer's state.
    """

    name: str
    forward_flops: float
    backward_flops: float
    parameter_bytes: int
    boundary_bytes: int
    saved_bytes: int
    state_bytes: int
    tied_to: str = ""
    """Name of the earlier layer whose weight this one shares (a tied head), or ''."""
    working_bytes: int = 0
    """What is needed once, however many micro-batches are in flight: 16-bit copies of float32 weights, a
    chunk of logits."""


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """Seconds of each layer on one device, alone on its host: `forward_s[layer]`, `backward_s[layer]`.

    They are of one micro-batch of the profiled size. Another size is taken to cost
    fixed + (measured - fixed) x samples / profiled samples: a line through what was measured.
    """

    device: str
    forward_s: tuple[float, ...]
    backward_s: tuple[float, ...]
    optimizer_s: tuple[float, ...]
    """Seconds of the optimizer's step for each layer's parameters."""
    forward_fixed_s: tuple[float, ...] = ()
    """Of `forward_s`, what does not grow with the samples; (): nothing. `backward_fixed_s` likewise."""
    backward_fixed_s: tuple[float, ...] = ()
    codecs: tuple[CodecSpeed, ...] = field(default=(), kw_only=True)
    """How fast it encodes and decodes, of the codecs that were measured."""

    def scaled(self, ratio: float) -> DeviceProfile:
        """For micro-batches of `ratio` times the samples."""
        return replace(
            self,
            forward_s=_on_the_line(self.forward_s, self.forward_fixed_s, ratio),
            backward_s=_on_the_line(self.backward_s, self.backward_fixed_s, ratio),
        )

    def recomputing(self) -> DeviceProfile:
        """For stages that do each forward again in front of its backward."""
        again = self.forward_fixed_s, self.backward_fixed_s
        return replace(
            self,
            backward_s=_sums(self.forward_s, self.backward_s),
            backward_fixed_s=_sums(*again) if all(again) else again[0] or again[1],
        )


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """The layers of a job, in order, for micro-batches of `micro_batch` samples of
    `sequence_length` tokens."""

    layers: tuple[LayerProfile, ...]
    micro_batch: int
    sequence_length: int
    recompute: bool = False
    """Whether stages save their inputs only and do the forward again for the backward."""
    local_steps: int = 0
    """In how many pieces, one a step, the weights' change is exchanged instead of gradients; 0: it is not."""
    visits: Visits = UNKNOWN
    """Of samples in the whole run, for codecs that remember them."""
    buffer_bytes: int = 0
    """What one end of a boundary may come to remember of samples, in the memory that layers need."""
    keeps_residuals: bool = False
    """Whether what gradients' codecs leave out is kept there too: as much as there are parameters."""
    value_bytes: int = 4
    """Width of the values that cross boundaries: 4, or 2 where the job computes in bf16."""

    @property
    def tokens_bytes(self) -> int:
        """Of one micro-batch's tokens, or targets: int64."""
        return self.micro_batch * self.sequence_length * 8

    def scaled(self, micro_batch: int) -> ModelProfile:
        """For micro-batches of `micro_batch` samples: flops, boundaries and what is saved in proportion.

        Exact but for a head whose logits are made in chunks at one of the sizes and at once at the other.
        """
        if micro_batch == self.micro_batch:
            return self
        ratio = micro_batch / self.micro_batch
        layers = tuple(
            replace(
                x,
                forward_flops=x.forward_flops * ratio,
                backward_flops=x.backward_flops * ratio,
                boundary_bytes=-(-x.boundary_bytes * micro_batch // self.micro_batch),
                saved_bytes=-(-x.saved_bytes * micro_batch // self.micro_batch),
            )
            for x in self.layers
        )
        return replace(self, layers=layers, micro_batch=micro_batch)


def _on_the_line(seconds: tuple[float, ...], fixed: tuple[float, ...], ratio: float) -> tuple[float, ...]:
    return tuple(f + (s - f) * ratio for s, f in zip(seconds, fixed or (0.0,) * len(seconds), strict=True))


def _sums(a: tuple[float, ...], b: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(x + y for x, y in zip(a, b, strict=True))

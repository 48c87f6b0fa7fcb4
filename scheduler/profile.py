"""What a layer costs: seconds on a device, bytes, flops. Measured elsewhere; carried and scaled here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from scheduler.codec_speed import CodecSpeed
from scheduler.layer_cost import Keys
from scheduler.sequence import bounds_of, earlier_shards, shard_bounds
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
    pair_flops: float = 0.0
    """Of `forward_flops`, what grows with the square of the length; 2.5 times as much of backward's."""
    keys: tuple[Keys, ...] = ()
    """What each of its attentions has to tell those who hold later positions, if sequences are divided."""


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
    forward_pairs_s: tuple[float, ...] = field(default=(), kw_only=True)
    """Of `forward_s`, what grows with the square of the length, each position seeing those before it; ():
    nothing, or not known. `backward_pairs_s` likewise."""
    backward_pairs_s: tuple[float, ...] = field(default=(), kw_only=True)

    def scaled(self, ratio: float) -> DeviceProfile:
        """For micro-batches of `ratio` times the samples."""
        return replace(
            self,
            forward_s=_on_the_line(self.forward_s, self.forward_fixed_s, ratio),
            backward_s=_on_the_line(self.backward_s, self.backward_fixed_s, ratio),
            forward_pairs_s=tuple(ratio * s for s in self.forward_pairs_s),
            backward_pairs_s=tuple(ratio * s for s in self.backward_pairs_s),
        )

    def recomputing(self) -> DeviceProfile:
        """For stages that do each forward again in front of its backward."""
        again = self.forward_fixed_s, self.backward_fixed_s
        return replace(
            self,
            backward_s=_sums(self.forward_s, self.backward_s),
            backward_fixed_s=_sums(*again),
            backward_pairs_s=_sums(self.forward_pairs_s, self.backward_pairs_s),
        )

    def in_shard(self, start: int, stop: int, length: int) -> DeviceProfile:
        """For whoever holds positions [start, stop) of every `length`: its part of what each position costs,
        and of the pairs, of which later positions have more."""
        part, pairs = (stop - start) / length, (stop**2 - start**2) / length**2

        def seconds(whole: tuple[float, ...], of_pairs: tuple[float, ...]) -> tuple[float, ...]:
            of_pairs = of_pairs or (0.0,) * len(whole)
            return tuple((s - p) * part + p * pairs for s, p in zip(whole, of_pairs, strict=True))

        return replace(
            self,
            forward_s=seconds(self.forward_s, self.forward_pairs_s),
            backward_s=seconds(self.backward_s, self.backward_pairs_s),
            forward_fixed_s=tuple(part * s for s in self.forward_fixed_s),
            backward_fixed_s=tuple(part * s for s in self.backward_fixed_s),
            forward_pairs_s=(),
            backward_pairs_s=(),
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
    bounds: tuple[tuple[int, int], ...] = ()
    """[start, stop) of every replica's positions, where replicas share sequences; (): each has all."""

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

        def parts(n_bytes: int) -> int:
            return -(-n_bytes * micro_batch // self.micro_batch)

        layers = tuple(
            replace(
                x,
                forward_flops=x.forward_flops * ratio,
                backward_flops=x.backward_flops * ratio,
                boundary_bytes=parts(x.boundary_bytes),
                saved_bytes=parts(x.saved_bytes),
                pair_flops=x.pair_flops * ratio,
                keys=tuple(k._replace(n_bytes=parts(k.n_bytes)) for k in x.keys),
            )
            for x in self.layers
        )
        return replace(self, layers=layers, micro_batch=micro_batch)

    def sharded(self, shards: int, sizes: tuple[int, ...] = ()) -> ModelProfile:
        """For replicas that each hold one of `shards` parts of every sequence: the largest part's tensors.
        `sizes`: the parts' positions; (): as equal as can be.

        A shard keeps, beside its part, its keys and those it was sent; every shard is taken to keep as much
        as the one that keeps most keys. `keys` stay those of all positions, flops those of a mean shard.
        """
        length = self.sequence_length
        bounds = bounds_of(sizes) if sizes else tuple(shard_bounds(length, shards))
        most = max(stop - start for start, stop in bounds)

        def part(n_bytes: int) -> int:
            return -(-n_bytes * most // length)

        layers = tuple(
            replace(
                x,
                forward_flops=x.forward_flops / shards,
                backward_flops=x.backward_flops / shards,
                boundary_bytes=part(x.boundary_bytes),
                saved_bytes=part(x.saved_bytes) + max(_keys_kept(x, bounds, d) for d in range(shards)),
                pair_flops=x.pair_flops / shards,
            )
            for x in self.layers
        )
        return replace(self, layers=layers, sequence_length=most, bounds=bounds)

    def of_replica(self, replica: int) -> ModelProfile:
        """With the positions of this replica's shard and the keys that it keeps; as it is where replicas
        share the batch."""
        if not self.bounds:
            return self
        start, stop = self.bounds[replica]
        positions = stop - start

        def part(n_bytes: int) -> int:
            return -(-n_bytes * positions // self.sequence_length)

        def saved(x: LayerProfile) -> int:
            kept = [_keys_kept(x, self.bounds, d) for d in range(len(self.bounds))]
            return part(x.saved_bytes - max(kept)) + kept[replica]

        layers = tuple(
            replace(x, boundary_bytes=part(x.boundary_bytes), saved_bytes=saved(x)) for x in self.layers
        )
        return replace(self, layers=layers, sequence_length=positions)


def _keys_kept(layer: LayerProfile, bounds: Sequence[tuple[int, int]], shard: int) -> int:
    """Bytes of the keys that a shard has for a micro-batch: its own, and those it is sent."""
    length = bounds[-1][1]
    return sum(
        k.n_bytes * (bounds[j][1] - bounds[j][0]) // length
        for k in layer.keys
        for j in (shard, *earlier_shards(bounds, shard, k.window))
    )


def _on_the_line(seconds: tuple[float, ...], fixed: tuple[float, ...], ratio: float) -> tuple[float, ...]:
    return tuple(f + (s - f) * ratio for s, f in zip(seconds, fixed or (0.0,) * len(seconds), strict=True))


def _sums(a: tuple[float, ...], b: tuple[float, ...]) -> tuple[float, ...]:
    """(): zeros."""
    if not (a and b):
        return a or b
    return tuple(x + y for x, y in zip(a, b, strict=True))

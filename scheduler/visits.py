"""What a run's length tells of its codecs: how often samples come again, what remembering them costs, and
what share of the steps goes before compression begins.

A run goes through its samples in epochs, each in an order of its own, so that a replica meets a sample in a
given epoch with the chance of its share of the batch. Knows numbers of samples; refuses to know which.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from compression.spec import AcsgdSpec, CodecSpec, MomentumSpec


@dataclass(frozen=True, slots=True)
class Visits:
    """Of a whole run; 0: not known."""

    n_samples: int = 0
    """Training samples in an epoch."""
    total: int = 0
    """Steps x global batch."""
    steps: int = 0
    """Of the optimizer."""

    @property
    def epochs(self) -> float:
        return self.total / self.n_samples if self.n_samples else 0.0

    @property
    def change(self) -> float:
        """By how much of itself a sample's activation is taken to change between visits, on average over the
        later visits of the run. 1 where no sample comes again, or nobody knows."""
        last = int(self.epochs)
        if last < 2:
            return 1.0
        early = CHANGES[: last - 1]
        return (sum(early) + (last - 1 - len(early)) * CHANGES[-1]) / (last - 1)

    def warm_share(self, warmup_steps: int) -> float:
        """Share of the steps that are among the first `warmup_steps`; 0 where their number is not known."""
        return min(1.0, warmup_steps / self.steps) if self.steps else 0.0

    def met(self, n_replicas: int) -> float:
        """How many samples a replica has met by the end of the run, if replicas have equal shares: after E
        epochs all but (1 - 1 / R)^E of them. Of an unknown number, as many as can be."""
        if self.epochs <= 1:
            return self.total / n_replicas
        missed: float = (1 - 1 / n_replicas) ** self.epochs
        return self.n_samples * (1 - missed)

    def first_share(self, n_replicas: int, room: float) -> float:
        """Share of all visits that are a sample's first at its replica, or as good as that because it was
        forgotten: buffers hold `room` samples. 0 where it is not known how many samples there are: then all
        is priced as a later visit."""
        if not self.n_samples or not self.total:
            return 0.0
        first = self.met(n_replicas) * n_replicas / self.total
        return 1 - (1 - first) * still_there(room / self.n_samples, n_replicas, self.epochs)

    def buffer_bytes(self, spec: AcsgdSpec, shape: tuple[int, ...], n_replicas: int) -> int:
        """Memory that one end of a boundary comes to need; 0 where buffers lie on disk."""
        if spec.memory == "disk":
            return 0
        return min(spec.budget_bytes, round(self.met(n_replicas) * spec.slot_bytes(shape)))


UNKNOWN = Visits()

CHANGES = (0.85, 0.85, 0.5, 0.4, 0.3)
"""Of an activation at the second, third, … visit, root mean square over root mean square, the last of all
later ones: as seen of the demo's model from scratch (2026-11-24). One that is fine-tuned changes less."""


@lru_cache(maxsize=4096)
def still_there(held: float, n_replicas: int, epochs: float, parts: int = 64) -> float:
    """The chance that a sample is still remembered when it comes again to a replica that holds a share `held`
    of all, those used last.

    A replica meets a share p = 1 / R of each epoch. A sample comes again g epochs later with a chance in
    proportion to (1 - p)^(g - 1), and to the epochs - g times that this can happen. Behind it come a part a
    of its own epoch, g - 1 whole ones and a part b of the last; of the others a share of
    (1 - a p) (1 - p)^(g - 1) (1 - b p) is not among them, which must be more than 1 - held.
    """
    p, lost = 1 / n_replicas, 1 - held
    if lost <= 0:
        return 1.0
    there = whole = 0.0
    missed, gap = 1.0, 1
    while gap < epochs and missed > 1e-9:
        chance = missed * (epochs - gap)
        whole += chance
        for k in range(parts):
            before = missed * (1 - (k + 0.5) / parts * p)
            there += chance / parts * min(1.0, max(0.0, (1 - lost / before) / p))
        missed *= 1 - p
        gap += 1
    return there / whole if whole else 0.0


def acsgd_bytes(
    spec: AcsgdSpec, shape: tuple[int, ...], dtype_bytes: int, visits: Visits, n_replicas: int
) -> int:
    """On the wire, of a tensor of `shape`, on average over the run."""
    first = visits.first_share(n_replicas, spec.budget_bytes / spec.slot_bytes(shape)) if shape[-1] else 0.0
    later_bytes = spec.wire_bytes(shape, dtype_bytes)
    return round(later_bytes + first * (spec.first_wire_bytes(shape, dtype_bytes) - later_bytes))


def flat_bytes(spec: CodecSpec, n_values: int, dtype_bytes: int, visits: Visits) -> int:
    """On the wire, of so many weights' gradients, on average over the run: momentum goes as it is before its
    warm-up is over."""
    later_bytes = spec.wire_bytes((n_values,), dtype_bytes)
    if not isinstance(spec, MomentumSpec):
        return later_bytes
    raw_bytes = n_values * dtype_bytes
    return round(later_bytes + visits.warm_share(spec.warmup_steps) * (raw_bytes - later_bytes))

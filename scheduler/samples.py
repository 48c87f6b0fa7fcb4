"""Which samples a step takes: a pure function of seed, data size, batch and step; and their ledger.

Every sample has an id, 0 .. n_samples - 1, the same in every epoch. A run walks through positions
0, 1, 2, …; position p is in epoch p // n_samples, and each epoch is a permutation of all ids of its
own. Anyone who knows the job can so tell, without asking, what any step reads. The state machine
keeps the `Ledger` of positions whose gradients went into the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


class SampleError(ValueError):
    """A question about samples that cannot be answered, or a ledger entry that cannot be true."""


@lru_cache(maxsize=2)  # a step touches one epoch, or two where it straddles their border
def permutation(n_samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of ids 0 .. n_samples - 1 in `epoch`; shape (n_samples,), read-only.

    Ids sorted by the raw output of Philox (Salmon et al. 2011) keyed by (seed, epoch). numpy keeps
    raw bit streams the same in all its versions, but not `Generator.permutation`, and workers
    with different versions must agree.
    """
    key = np.array([seed, epoch], dtype=np.uint64)
    order = np.argsort(np.random.Philox(key=key).random_raw(n_samples), kind="stable").astype(np.int64)
    order.setflags(write=False)
    return order


def epoch_of(position: int, n_samples: int) -> int:
    """The epoch that `position` is in."""
    return position // n_samples


def step_samples(seed: int, n_samples: int, global_batch: int, step: int) -> tuple[int, ...]:
    """Ids of the `global_batch` samples of `step`, in the order in which micro-batches take them.

    Raises SampleError without samples, or for a batch or step below its range.
    """
    if n_samples < 1 or global_batch < 1 or step < 0:
        raise SampleError(
            f"found n_samples {n_samples}, global_batch {global_batch}, step {step}; "
            "required at least 1, at least 1, at least 0"
        )
    ids: list[int] = []
    position, stop = positions(step, step + 1, global_batch)
    while position < stop:
        epoch = epoch_of(position, n_samples)
        first = position - epoch * n_samples
        taken = permutation(n_samples, seed, epoch)[first : first + stop - position]
        ids.extend(int(i) for i in taken)
        position += len(taken)
    return tuple(ids)


def positions(start_step: int, stop_step: int, global_batch: int) -> tuple[int, int]:
    """The positions [start, stop) that steps [start_step, stop_step) consume."""
    if not 0 <= start_step <= stop_step:
        raise SampleError(f"found steps [{start_step}, {stop_step}); required 0 <= start <= stop")
    return start_step * global_batch, stop_step * global_batch


@dataclass(frozen=True, slots=True)
class Ledger:
    """Positions consumed so far, as ascending, disjoint, non-touching ranges [start, stop). Immutable."""

    ranges: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        last = -1
        for start, stop in self.ranges:
            if not last < start < stop or start < 0:
                raise SampleError(f"found the ranges {self.ranges}; required ascending, disjoint ones")
            last = stop

    @property
    def n_consumed(self) -> int:
        return sum(stop - start for start, stop in self.ranges)

    @property
    def complete_to(self) -> int:
        """Every position below this one is consumed, and this one is not."""
        return self.ranges[0][1] if self.ranges and self.ranges[0][0] == 0 else 0

    def consume(self, start: int, stop: int) -> Ledger:
        """With [start, stop) consumed too. Raises SampleError if any of it already was."""
        if not 0 <= start <= stop:
            raise SampleError(f"found the positions [{start}, {stop}); required 0 <= start <= stop")
        if start == stop:
            return self
        for a, b in self.ranges:
            if a < stop and start < b:
                raise SampleError(
                    f"found the positions [{max(a, start)}, {min(b, stop)}) consumed a second time; "
                    "required once: a step that is repeated must be rewound first"
                )
        return Ledger(_merged((*self.ranges, (start, stop))))

    def rewind(self, position: int) -> Ledger:
        """With every position from `position` on unconsumed, as after going back to a checkpoint."""
        return Ledger(tuple((a, min(b, position)) for a, b in self.ranges if a < position))

    def missing(self, stop: int) -> tuple[tuple[int, int], ...]:
        """The ranges below `stop` that are not consumed."""
        gaps: list[tuple[int, int]] = []
        at = 0
        for a, b in (*self.ranges, (stop, stop)):
            if at < min(a, stop):
                gaps.append((at, min(a, stop)))
            at = max(at, b)
        return tuple(gaps)


def _merged(ranges: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    """Ascending, with touching ranges joined; the input is disjoint."""
    out: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if out and out[-1][1] == start:
            out[-1] = (out[-1][0], stop)
        else:
            out.append((start, stop))
    return tuple(out)

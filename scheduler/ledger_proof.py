"""Whether a run used each sample of each epoch exactly once, counted from what was written down of its steps.

Not the arithmetic that hands samples out, but the entries are believed: which positions each step that counts
says it consumed, and under which plan. The ids at those positions are drawn again from (seed, epoch) and
counted. Pure: entries in, a proof or the first defects out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from scheduler.plan import Plan
from scheduler.samples import SampleError, epoch_of, permutation
from scheduler.units import count

MOST_DEFECTS = 20


@dataclass(frozen=True, slots=True)
class Entry:
    """A step that counts. `first`, `stop`: the positions it consumed; None: nothing says which."""

    attempt: int
    step: int
    plan_version: int
    first: int | None
    stop: int | None


@dataclass(frozen=True, slots=True)
class Epoch:
    """How often its samples were used: `once` of `of` exactly once."""

    epoch: int
    once: int
    of: int
    complete: bool
    """Whether the run went to its end."""


@dataclass(frozen=True, slots=True)
class Proof:
    """`defects` is empty when all is as it must be."""

    steps: int
    attempts: int
    epochs: tuple[Epoch, ...]
    defects: tuple[str, ...]

    @property
    def holds(self) -> bool:
        return not self.defects


def prove(
    entries: Sequence[Entry],
    plans: Mapping[int, Plan],
    global_batch: int,
    seed: int,
    n_samples: int,
) -> Proof:
    """`plans` by version. Raises SampleError if `n_samples` or `global_batch` is less than 1."""
    if n_samples < 1 or global_batch < 1:
        raise SampleError(f"found n_samples {n_samples}, global_batch {global_batch}; required at least 1")
    defects = [*_steps(entries), *_positions(entries, global_batch), *_shares(entries, plans, global_batch)]
    epochs, more = _epochs(entries, seed, n_samples)
    defects += more
    attempts = len({e.attempt for e in entries})
    return Proof(len(entries), attempts, epochs, tuple(defects[:MOST_DEFECTS]))


def _steps(entries: Sequence[Entry]) -> Iterable[str]:
    """Each step once, and none left out."""
    seen: dict[int, int] = {}
    for e in entries:
        if e.step in seen:
            yield f"step {e.step} counts twice: in attempt {seen[e.step]} and in attempt {e.attempt}"
        seen[e.step] = e.attempt
    for step in range(max(seen, default=-1) + 1):
        if step not in seen:
            yield f"step {step} is missing, though later ones count"


def _positions(entries: Sequence[Entry], global_batch: int) -> Iterable[str]:
    """Each step the batch that is its own."""
    for e in entries:
        if e.first is None or e.stop is None:
            yield f"step {e.step}: nothing says which samples it consumed"
        elif (e.first, e.stop) != (e.step * global_batch, (e.step + 1) * global_batch):
            should = f"{e.step * global_batch} .. {(e.step + 1) * global_batch - 1}"
            yield f"step {e.step}: found positions {e.first} .. {e.stop - 1}, required {should}"


def _shares(entries: Sequence[Entry], plans: Mapping[int, Plan], global_batch: int) -> Iterable[str]:
    """Under its plan the replicas together take the whole batch, no micro-batch twice."""
    for version in sorted({e.plan_version for e in entries}):
        steps = [e.step for e in entries if e.plan_version == version]
        plan = plans.get(version)
        where = f"plan {version}, under which {count(len(steps), 'step')} ran"
        if plan is None:
            yield f"{where}, is not in the store"
        elif plan.samples != global_batch:
            yield f"{where}: its replicas take {plan.samples} samples, required {global_batch}"


def _epochs(entries: Sequence[Entry], seed: int, n_samples: int) -> tuple[tuple[Epoch, ...], list[str]]:
    """Every id of every epoch counted."""
    used: dict[int, np.ndarray] = {}
    last = 0
    for e in entries:
        at, stop = e.first or 0, e.stop or 0
        last = max(last, stop)
        while at < stop:
            epoch = epoch_of(at, n_samples)
            start = at - epoch * n_samples
            ids = permutation(n_samples, seed, epoch)[start : start + stop - at]
            counts = used.setdefault(epoch, np.zeros(n_samples, dtype=np.int64))
            np.add.at(counts, ids, 1)
            at += len(ids)
    epochs, defects = [], []
    for epoch, counts in sorted(used.items()):
        complete = (epoch + 1) * n_samples <= last
        twice, never = np.flatnonzero(counts > 1), np.flatnonzero(counts == 0)
        if len(twice):
            worst = int(twice[0])
            defects.append(
                f"epoch {epoch}: sample {worst} was used {counts[worst]} times"
                f" ({count(len(twice), 'sample')} more than once)"
            )
        if complete and len(never):
            defects.append(
                f"epoch {epoch}: sample {int(never[0])} was never used ({count(len(never), 'sample')} not)"
            )
        epochs.append(Epoch(epoch, int((counts == 1).sum()), n_samples, complete))
    return tuple(epochs), defects

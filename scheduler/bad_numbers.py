"""Whose numbers are bad: a step's gradients, rank by rank, against each other and against the run's history.

What a rank reports is of its own micro-batches, before replicas are added: afterwards all replicas of a
stage hold the same sum and nobody can tell where a NaN came from. A NaN also travels: what a broken rank
sends makes its whole pipeline non-finite, and comes back to it with the gradients. So each rank says too
whether the activations and the gradients that it was sent were in order: the one at fault is before the first
stage that was sent a bad activation, or, if none was, the last one with bad gradients that was sent none.

    not a number    found on some replicas, not on all -> the rank of each where it began
                    found on all replicas              -> the run diverges; no rank is to blame
    far off         the norm is FACTOR times the median of the stage's layers or less than 1 / FACTOR of it,
                    more than DEVIATIONS deviations from it on a log scale, and AMONG times away from the
                    stage's other replicas in this step, of which no more than half are so

FACTOR is large because norms jump honestly: a hard batch is two or three times the median, a learning rate
warm-up a few. The scale is the median absolute deviation (x 1.4826 for the normal's sigma), which a tenth
of bad steps does not move. With one replica there is nobody to compare with: a step that is far off is done
again once, and if it comes out the same it is the data's doing and is taken.

Pure: history in, verdict and reason out. Knows no worker's name, sends nothing, repeats nothing itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import isfinite, log, sqrt
from statistics import median
from typing import Literal

FACTOR = 10.0
AMONG = FACTOR / 2
DEVIATIONS = 8.0
LEAST_DEVIATION = 0.05
"""Of log norms: a stage whose norms hardly move is not allowed to make a rule of it."""
LEAST_HISTORY = 16
"""Steps of a stage before anything is far off it."""
MOST_HISTORY = 128
"""Steps that are remembered: norms fall over a run, so old ones mislead."""
STRIKES = 3
STRIKES_WITHIN = 1000
"""A rank that was at fault STRIKES times within so many steps does not come back."""
_SIGMA = 1.4826

Kind = Literal["fine", "not finite", "far off", "diverged"]


@dataclass(frozen=True, slots=True)
class Report:
    """One rank's own gradients in one step. `square`: their squares, summed. `bad_activation`,
    `bad_gradient`: whether it received one that was not finite."""

    rank: int
    replica: int
    stage: int
    layers: tuple[int, int]
    """The stage's first layer and its end: under another plan it may hold others, with norms of their own."""
    square: float
    micro_batches: int = 1
    bad_activation: bool = False
    bad_gradient: bool = False

    @property
    def finite(self) -> bool:
        return isfinite(self.square) and self.square >= 0.0

    @property
    def norm(self) -> float:
        """Of one micro-batch, had they all the same: ranks may take unequal numbers of them."""
        return sqrt(self.square) / max(1, self.micro_batches)


@dataclass(frozen=True, slots=True)
class Verdict:
    """`ranks` are at fault; none when all is fine, or when nobody in particular is."""

    kind: Kind
    ranks: tuple[int, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class History:
    """Norms of committed steps by a stage's layers, the latest last; each the median of its replicas."""

    norms: Mapping[tuple[int, int], tuple[float, ...]] = field(default_factory=dict)

    def add(self, reports: Sequence[Report]) -> History:
        """With a step that was committed."""
        norms = dict(self.norms)
        for of_stage in _by_stage(reports).values():
            layers, found = of_stage[0].layers, median(r.norm for r in of_stage)
            norms[layers] = (*norms.get(layers, ()), found)[-MOST_HISTORY:]
        return History(norms)


def judge(reports: Sequence[Report], history: History) -> Verdict:
    """What the reports of all ranks of one step say. Every stage must be reported by every replica."""
    bad = [r for r in reports if not r.finite]
    if bad:
        return _not_finite(reports, bad)
    off: list[tuple[Report, float]] = []
    for of_stage in _by_stage(reports).values():
        known = history.norms.get(of_stage[0].layers, ())
        found = [
            (r, m) for r in of_stage if (m := _times(r.norm, known)) is not None and _stands_out(r, of_stage)
        ]
        if 2 * len(found) <= len(of_stage) or len(of_stage) == 1:
            off += found
    if not off:
        return Verdict("fine", (), "every norm is of the size that it was")
    said = "; ".join(
        f"rank {r.rank} (stage {r.stage}, replica {r.replica}): norm {r.norm:.3g}, {m:.3g} times the median "
        f"of {len(history.norms[r.layers])} steps"
        for r, m in off
    )
    return Verdict("far off", tuple(r.rank for r, _ in off), said)


def _by_stage(reports: Sequence[Report]) -> dict[int, list[Report]]:
    found: dict[int, list[Report]] = {}
    for r in reports:
        found.setdefault(r.stage, []).append(r)
    return found


def _not_finite(reports: Sequence[Report], bad: Sequence[Report]) -> Verdict:
    replicas, broken = {r.replica for r in reports}, {r.replica for r in bad}
    if broken == replicas and len(replicas) > 1:
        where = ", ".join(str(r.rank) for r in bad)
        reason = f"every replica has gradients that are not finite (ranks {where}): the run diverges"
        return Verdict("diverged", (), reason)
    at_fault = [_origin([r for r in reports if r.replica == replica]) for replica in sorted(broken)]
    said = ", ".join(f"rank {r.rank} (stage {r.stage}, replica {r.replica})" for r in at_fault)
    reason = f"{said} was sent finite numbers and made others"
    return Verdict("not finite", tuple(r.rank for r in at_fault), reason)


def _origin(pipeline: Sequence[Report]) -> Report:
    """The rank of a replica where its bad numbers began."""
    by_stage = sorted(pipeline, key=lambda r: r.stage)
    for before, r in pairwise(by_stage):
        if r.bad_activation:
            return before
    sent_good = [r for r in by_stage if not r.finite and not r.bad_gradient]
    return sent_good[-1] if sent_good else next(r for r in reversed(by_stage) if not r.finite)


def _times(norm: float, known: Sequence[float]) -> float | None:
    """How many times the median the norm is, if that is far off; else None."""
    if len(known) < LEAST_HISTORY:
        return None
    middle = median(known)
    if middle <= 0.0:
        return None
    times = norm / middle
    if 1.0 / FACTOR <= times <= FACTOR:
        return None
    logs = [log(k) for k in known if k > 0.0]
    centre = median(logs)
    deviation = max(LEAST_DEVIATION, _SIGMA * median(abs(x - centre) for x in logs))
    away = abs(log(norm) - centre) if norm > 0.0 else float("inf")
    return times if away > DEVIATIONS * deviation else None


def _stands_out(report: Report, of_stage: Sequence[Report]) -> bool:
    """Whether it is far from what the stage's other replicas have in this step; alone it always is."""
    others = [r.norm for r in of_stage if r is not report]
    if not others or median(others) <= 0.0:
        return True
    return not 1.0 / AMONG <= report.norm / median(others) <= AMONG


# ---- what follows

Action = Literal["commit", "repeat", "repeat without", "quarantine", "diverged"]


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of the step, and why. `workers`: whose micro-batches the repeated step does without."""

    action: Action
    workers: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Conduct:
    """By worker, the steps at which it was at fault. Survives plans: ranks change, workers do not."""

    faults: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def add(self, workers: Sequence[str], step: int) -> Conduct:
        faults = dict(self.faults)
        for worker in workers:
            recent = tuple(s for s in faults.get(worker, ()) if step - s < STRIKES_WITHIN and s != step)
            faults[worker] = (*recent, step)
        return Conduct(faults)

    def strikes(self, worker: str, step: int) -> int:
        return sum(step - s < STRIKES_WITHIN for s in self.faults.get(worker, ()))


def decide(
    verdict: Verdict, workers: Sequence[str], replicas: int, step: int, conduct: Conduct, repeated: bool
) -> tuple[Decision, Conduct]:
    """What to do after `verdict` on `step`; `workers` by rank, `repeated`: the step was done again already.

    With several replicas the step is repeated without those at fault, and one of them that is so for the
    STRIKES-th time is quarantined. With one replica it is repeated as it is; the same again is the data's
    doing if it is a number, and the end of the run if it is none.
    """
    if verdict.kind == "fine":
        return Decision("commit", (), verdict.reason), conduct
    if verdict.kind == "diverged":
        return Decision("diverged", (), verdict.reason), conduct
    named = tuple(workers[r] for r in verdict.ranks)
    if replicas == 1:
        if not repeated:
            return Decision("repeat", (), f"{verdict.reason}; the step is done again"), conduct
        if verdict.kind == "far off":
            return Decision("commit", (), f"{verdict.reason}, and again: it is the data"), conduct
        return Decision("diverged", (), f"{verdict.reason}, and again"), conduct
    return without(named, verdict.reason, step, conduct)


def without(named: Sequence[str], reason: str, step: int, conduct: Conduct) -> tuple[Decision, Conduct]:
    """Do `step` again without those who are at fault in it, for good if it is the STRIKES-th time."""
    conduct = conduct.add(named, step)
    out = tuple(w for w in named if conduct.strikes(w, step) >= STRIKES)
    if out:
        reason = f"{reason}; {', '.join(out)} was at fault {STRIKES} times and is quarantined"
        return Decision("quarantine", out, reason), conduct
    reason = f"{reason}; the step is done again without {', '.join(named)}"
    return Decision("repeat without", tuple(named), reason), conduct

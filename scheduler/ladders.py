"""What `auto` may choose from: the codecs of a kind of traffic worth having, the least compression first.

Of all codecs those whose expected error is within the budget, without those that another beats in error and
bytes alike. Knows shapes and budgets; refuses to know links.
"""

from __future__ import annotations

from collections.abc import Iterator

from compression.grid import CodecError
from compression.spec import AcsgdSpec, FeedbackSpec, HalfSpec, IdentitySpec, KBitSpec, TileSpec, TopKSpec
from compression.spec import CodecSpec as Spec
from scheduler.job_compression import ActivationAutoOptions, AutoOptions, Kind
from scheduler.visits import UNKNOWN, Visits, acsgd_bytes

REDUCED = (1 << 20,)
"""A shape for gradients of weights: large enough that a group too short at its end does not count."""

Ladder = tuple[str, ...]
"""Names of codecs, least error and most bytes first: each errs more and takes fewer bytes than the last."""


def ladder(
    kind: Kind,
    auto: AutoOptions,
    shape: tuple[int, ...],
    dtype_bytes: int,
    visits: Visits = UNKNOWN,
    n_replicas: int = 1,
) -> Ladder:
    """What is within `auto`'s budget for tensors of `shape`. AC-SGD only where samples are known to come
    again; they then change by what the job says, or by what the number of epochs lets expect.

    Momentum is no rung: at the same bits it errs as `feedback` does, and its warm-up costs more. What it is
    for, one bit, errs more than any budget allows, so only a job asks for it."""
    if kind == "reduce":
        shape = REDUCED
    known: list[tuple[float, int, str]] = []
    for spec in _candidates(kind, shape[-1], visits.epochs > 1):
        try:
            if isinstance(spec, AcsgdSpec):
                n_bytes = acsgd_bytes(spec, shape, dtype_bytes, visits, n_replicas)
            else:
                n_bytes = spec.wire_bytes(shape, dtype_bytes)
            known.append((_error(spec, auto, shape, visits), n_bytes, spec.name))
        except CodecError:
            continue  # a group that does not divide this model's rows
    rungs: list[str] = []
    least = None
    for error, n_bytes, name in sorted(known, key=lambda k: k[:2]):
        if error <= auto.max_error and (least is None or n_bytes < least):
            rungs.append(name)
            least = n_bytes
    return tuple(rungs)


def _error(spec: Spec, auto: AutoOptions, shape: tuple[int, ...], visits: Visits) -> float:
    if not isinstance(spec, AcsgdSpec):
        return spec.relative_error(shape)
    said = auto.change if isinstance(auto, ActivationAutoOptions) else None
    return spec.error_at(shape, visits.change if said is None else said)


def _candidates(kind: Kind, width: int, again: bool) -> Iterator[Spec]:
    """Activations may be remembered, and rounded to the nearest. Of their gradients the mean must be right
    (AC-SGD's theorem), in 4 bits or more. What weights' gradients lose goes with the next. First visits go in
    8 bits, which err less than what any later visit leaves; buffers lie on disk, so that no plan has to fit
    with them in memory that it may not need."""
    yield IdentitySpec()
    group = next((g for g in (64, 32, 16, 8) if width % g == 0), 0)
    if kind == "reduce":
        yield KBitSpec(8, rounding="stochastic")
        yield from (FeedbackSpec(bits) for bits in (8, 6, 4, 3, 2))
        yield from (TopKSpec(per_mille, 8) for per_mille in (100, 30, 10))
        return
    yield HalfSpec()
    if not group:
        return
    tile = min(group, 32)
    rounding = "nearest" if kind == "activations" else "stochastic"
    least = 2 if kind == "activations" else 4
    yield from (KBitSpec(bits, "group", group, rounding) for bits in range(8, least - 1, -1))
    yield from (TileSpec(bits, tile, rounding=rounding) for bits in range(8, least, -1))
    if kind == "activations" and again:
        yield from (AcsgdSpec(bits, group=group, first=8, memory="disk") for bits in (8, 6, 4, 3, 2))

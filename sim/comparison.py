"""A comparison's rows, and how they are shown: as JSON, as a table, as a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scheduler.plan import Plan
from scheduler.shares import time_shares
from scheduler.timeline import Timeline
from scheduler.units import duration
from sim.inputs import NetworkRead
from sim.pictures import Bar
from sim.placed import placed_by
from sim.report import Contents, Step, Table


@dataclass(frozen=True, slots=True)
class Row:
    """One cell of the comparison; `figures` are None where there is no plan, and `why` says why."""

    placement: str
    schedule: str
    codec: str
    gradient_codec: str
    shape: str
    figures: tuple[float, float, float, float] | None
    """(step in s, tokens/s, share of the devices' time in which nothing is computed, bytes a step)."""
    note: str
    why: str = ""
    plan: Plan | None = None
    timeline: Timeline | None = None
    """Of the step that was replayed."""


def document(row: Row) -> dict[str, Any]:
    """The row as JSON has it; its figures by name, null where there is no plan."""
    names = ("step_s", "tokens_per_s", "idle_fraction", "sent_bytes")
    known = dict(zip(names, row.figures or (None,) * 4, strict=True))
    texts = ("placement", "shape", "schedule", "codec", "gradient_codec", "note", "why")
    return {name: getattr(row, name) for name in texts} | known


_HEAD = ("placement", "shape", "schedule", "activations / gradients", "step s", "x fastest", "tokens/s",
         "idle", "GB sent")  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    """One table, the fastest first, times as multiples of the fastest's; then why some have none."""
    done = _fastest_first(rows)
    cells: list[tuple[str, ...]] = [_HEAD, *_cells(done)]
    width = [max(len(row[k]) for row in cells) for k in range(len(_HEAD))]
    lines = ["  ".join(f"{c:<{w}}" for c, w in zip(row, width, strict=True)).rstrip() for row in cells]
    lines.insert(1, "  ".join("-" * w for w in width))
    lines += ["", *dict.fromkeys(f"{r.placement}: {r.note}" for r in done)]
    none = (r for r in rows if r.figures is None)
    return "\n".join(
        [*lines, *dict.fromkeys(f"{r.placement} ({r.schedule}): no plan: {r.why}" for r in none)]
    )


def _fastest_first(rows: Sequence[Row]) -> list[Row]:
    return sorted((r for r in rows if r.figures is not None), key=lambda r: r.figures or ())


def _cells(done: Sequence[Row]) -> list[tuple[str, ...]]:
    """The table's lines, as _HEAD names them."""
    cells: list[tuple[str, ...]] = []
    for r in done:
        assert r.figures is not None
        step_s, tokens_per_s, idle, sent_bytes = r.figures
        fastest_s = (done[0].figures or r.figures)[0]
        codecs = f"{r.codec} / {r.gradient_codec}"
        shares = f"{step_s:.2f}", f"{step_s / fastest_s:.2f}", f"{tokens_per_s:,.0f}", f"{idle:.0%}"
        cells.append((r.placement, r.shape, r.schedule, codecs, *shares, f"{sent_bytes / 1e9:.1f}"))
    return cells


def contents(read: NetworkRead, rows: Sequence[Row]) -> Contents:
    """What a report shows: the fastest's placement and step, where everybody's time goes, the table."""
    done = _fastest_first(rows)
    best = done[0] if done else None
    plan, timeline = (best.plan, best.timeline) if best else (None, None)
    regions = {d.name: d.region for d in read.network.devices}
    names = _names(done)
    shown = [(name, r.timeline) for name, r in zip(names, done, strict=True) if r.timeline is not None]
    steps: tuple[Step, ...] = ()
    placed = None
    if plan is not None and timeline is not None:
        steps = (Step(names[0], timeline, tuple(plan.device(r) for r in range(plan.n_ranks))),)
        placed = placed_by(plan, timeline, regions, read.positions)
    none = dict.fromkeys(
        f"{r.placement} ({r.schedule}) has no plan: {r.why}" for r in rows if r.figures is None
    )
    return Contents(
        title=f"Compared on {read.name}",
        subtitle=f"{len(rows)} settings on {len(read.network.devices)} devices, replayed by one engine.",
        figures=tuple(
            (name, duration(t.duration_s))
            for name, t in (shown[:1] + shown[-1:] if len(shown) > 1 else shown)
        ),
        placed=placed,
        placed_title=f"Pipelines between regions, {names[0]}" if names else "",
        steps=steps,
        compared=tuple(Bar(name, time_shares(t).parts()) for name, t in shown),
        tables=(Table("Side by side", _HEAD, tuple(_cells(done))),),
        reasons_heading="How each came to its plan",
        reasons=(*dict.fromkeys(f"{r.placement}: {r.note}" for r in done), *none),
    )


def _names(rows: Sequence[Row]) -> list[str]:
    """What tells the rows apart: the placement, and of schedule and codecs what is not the same for all."""
    parts = [(r.placement, r.schedule, r.codec, r.gradient_codec) for r in rows]
    varied = [k for k in range(4) if k == 0 or len({p[k] for p in parts}) > 1]
    return [", ".join(p[k] for k in varied) for p in parts]

"""The spans of recorded steps beside the engine's prediction of one, kept in STATE/timeline.json.

Ranks send the spans of a recorded step once it is committed (StepDone); when all have, the file is
replaced by one that holds the last of them beside the prediction.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scheduler.link_use import LinkUse
from scheduler.plan import Plan
from scheduler.timeline import Span, Timeline, use_by_rank

from .planning import Planning

TIMELINE_FILE = "timeline.json"
KEPT_STEPS = 2
MAX_OPEN_STEPS = 128
"""Steps whose spans are held until the last rank has sent its own."""


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """What one step was measured to be."""

    step: int
    timeline: Timeline
    links: tuple[LinkUse, ...] = ()


def timeline_to_json(timeline: Timeline) -> dict[str, Any]:
    """Spans as rows [rank, kind, start_s, end_s, mb, peer, n_bytes]."""
    return {
        "n_ranks": timeline.n_ranks,
        "spans": [[s.rank, s.kind, s.start_s, s.end_s, s.mb, s.peer, s.n_bytes] for s in timeline.spans],
    }


def timeline_from_json(raw: dict[str, Any]) -> Timeline:
    """Inverse of `timeline_to_json`. Raises KeyError, TypeError, ValueError for anything else."""
    return Timeline(
        int(raw["n_ranks"]),
        tuple(
            Span(int(r), k, float(a), float(b), int(m), int(p), int(n))
            for r, k, a, b, m, p, n in raw["spans"]
        ),
    )


def link_event(use: LinkUse, plan: Plan | None) -> dict[str, Any]:
    """One kind of traffic over one link, for whoever follows the run. `to` is '' for several at once."""

    def named(rank: int) -> str:
        return plan.device(rank) if plan is not None and 0 <= rank < plan.n_ranks else ""

    found = {"from": named(use.rank), "to": named(use.peer), "ratio": use.ratio, **asdict(use)}
    del found["rank"], found["peer"]
    return found


def use_event(timeline: Timeline, plan: Plan, memory_used_bytes: Mapping[str, int]) -> list[dict[str, Any]]:
    """How each rank's worker spent a recorded step, and the memory that it last said it has in use."""
    names = [plan.device(rank) for rank in range(plan.n_ranks)]
    return [
        {"name": name, **asdict(use), "memory_used_bytes": memory_used_bytes.get(name, 0)}
        for name, use in zip(names, use_by_rank(timeline), strict=True)
    ]


class Timelines:
    """Collects spans as they come and writes the file when a recorded step is complete."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / TIMELINE_FILE
        self._open: dict[int, dict[int, tuple[tuple[Span, ...], tuple[LinkUse, ...]]]] = {}
        """By step and rank."""
        self._recorded: list[RecordedStep] = []
        self._predicted: Timeline | None = None
        self._devices: tuple[str, ...] = ()

    def planned(self, planning: Planning) -> None:
        """A plan was made; what was recorded under another plan is no longer comparable."""
        plan = planning.plan
        self._devices = tuple(plan.device(r) for r in range(plan.n_ranks))
        self._predicted = planning.predicted
        self._open.clear()
        self._recorded.clear()

    def add(
        self, step: int, rank: int, spans: Iterable[Span], links: Iterable[LinkUse] = ()
    ) -> RecordedStep | None:
        """One rank's spans and links of a step; with the last rank's the file is written, and what was
        recorded is returned."""
        if step not in self._open and len(self._open) >= MAX_OPEN_STEPS:
            return None
        told = self._open.setdefault(step, {})
        told[rank] = tuple(spans), tuple(links)
        if len(told) < len(self._devices):
            return None
        del self._open[step]
        return self._write(
            step, [s for x, _ in told.values() for s in x], [u for _, x in told.values() for u in x]
        )

    def _write(self, step: int, spans: list[Span], links: list[LinkUse]) -> RecordedStep:
        ordered = tuple(sorted(spans, key=lambda s: (s.rank, s.start_s, s.end_s)))
        recorded = RecordedStep(step, Timeline(len(self._devices), ordered), tuple(links))
        self._recorded = [*self._recorded, recorded][-KEPT_STEPS:]
        body = {
            "devices": list(self._devices),
            "predicted": timeline_to_json(self._predicted) if self._predicted else None,
            "measured": [
                {"step": r.step, **timeline_to_json(r.timeline), "links": [asdict(x) for x in r.links]}
                for r in self._recorded
            ],
        }
        part = self._path.with_suffix(".json.part")
        part.write_text(json.dumps(body))
        os.replace(part, self._path)
        return recorded

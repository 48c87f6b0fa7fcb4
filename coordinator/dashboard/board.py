"""What the dashboard shows, made of the run's events: the same for a run that goes on and one that has ended.

Takes the events that `coordinator start --json` prints and the store keeps. Knows no web, no clock, and asks
the run nothing; what it was not told it does not show.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from protos.log_lines import finite

Event = Mapping[str, Any]

KEPT_EVENTS = 300
KEPT_STEPS = 100_000
"""Steps of the series; of a longer run the oldest are forgotten here (the store keeps them)."""
SERIES = (
    "step",
    "loss",
    "grad_norm",
    "tokens_per_s",
    "step_s",
    "predicted_step_s",
    "sent_bytes",
    "raw_bytes",
)
_BAD = frozenset({"left", "failed", "warning", "disagreement"})
_QUIET = frozenset({"step", "links", "use", "eval", "listening", "check"})
"""Events that show as numbers, not in the list of what happened."""


@dataclass(slots=True)
class Worker:
    """A worker that is or was a member; `state`: member, spare (no layers in the plan) or gone."""

    name: str
    region: str
    host: str
    memory_bytes: int
    gone: str = ""
    stage: int = -1
    replica: int = -1
    busy: float | None = None
    """Share of the last recorded step in which it computed."""
    memory_used_bytes: int | None = None


@dataclass(slots=True)
class Board:
    """The run as it was told, up to the last event. `seq` grows with every change."""

    run: str = ""
    job: str = ""
    steps: int = 0
    phase: str = ""
    reason: str = ""
    code: int | None = None
    step: int = 0
    eval_loss: float | None = None
    tokens: int = 0
    seq: int = 0
    needed: int = 0
    outlook: str = ""
    """What the last look for a faster plan found; '' before the first."""
    checks: int = 0
    """Spot checks since the coordinator began, and how many of them disagreed."""
    disagreements: int = 0
    recorded_step: int = 0
    """The last whose spans and traffic were told; 0: none of the plan that runs."""
    workers: dict[str, Worker] = field(default_factory=dict)
    plan: dict[str, Any] | None = None
    plans: list[dict[str, Any]] = field(default_factory=list)
    evals: list[tuple[int, float]] = field(default_factory=list)
    happened: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=KEPT_EVENTS))
    series: dict[str, deque[float | None]] = field(
        default_factory=lambda: {name: deque(maxlen=KEPT_STEPS) for name in SERIES}
    )
    uses: dict[tuple[str, str, str], dict[str, Any]] = field(default_factory=dict)
    """The last step's traffic by (from, to, kind), of steps that were recorded."""

    def take(self, event: Event, at_s: float) -> None:
        """One event of the run, told at `at_s` (seconds since 1970)."""
        kind = str(event.get("event", ""))
        self.seq += 1
        match kind:
            case "listening":
                self.run, self.steps, self.step = event["run"], event["steps"], event["step"]
                self.needed = event["min_workers"]
                self.phase = self.phase or "gathering"
            case "joined":
                name = event["name"]
                self.workers[name] = Worker(name, event["region"], event["host"], event["memory_bytes"])
                self._place()
            case "left":
                if (
                    event["name"] in self.workers and not self.over
                ):  # after the end all leave, and nothing is lost
                    self.workers[event["name"]].gone = str(event["reason"])
            case "phase":
                self.phase, self.reason, self.step = event["phase"], event["reason"], event["step"]
            case "plan":
                self.plan = {key: value for key, value in event.items() if key != "event"}
                why = self.reason if self.phase == "planning" else ""
                self.plans.append({"at_s": at_s, "step": self.step, "why": why, **_shape(self.plan)})
                self.recorded_step = 0
                self.uses.clear()
                self._place()
            case "recovery":
                if self.plans:
                    self.plans[-1]["why"] = f"goes on after step {event['step']}: {event['reason']}"
            case "step":
                self._step(event)
            case "eval":
                self.eval_loss = finite(event["eval_loss"])
                if self.eval_loss is not None:
                    self.evals.append((event["step"], self.eval_loss))
            case "links":
                for use in event["links"]:
                    self.uses[use["from"], use["to"], use["kind"]] = dict(use)
            case "use":
                self.recorded_step = event["step"]
                for row in event["workers"]:
                    if (worker := self.workers.get(row["name"])) is not None:
                        worker.busy = row["busy_s"] / event["step_s"] if event["step_s"] > 0 else None
                        worker.memory_used_bytes = row["memory_used_bytes"] or None
            case "check" | "disagreement":
                self.checks += 1
                self.disagreements += kind == "disagreement"
            case "outlook":
                self.outlook = f"after step {event['step']}: {event['reason']}"
            case "finished" | "failed":
                self.phase, self.reason, self.code = kind, event["reason"], event["code"]
            case _:
                pass
        if kind not in _QUIET and not (kind == "outlook" and not event["moves"]):
            bad = kind in _BAD and not (kind == "left" and self.over)
            self.happened.append({"at_s": at_s, "kind": kind, "text": _words(event), "bad": bad})

    def _step(self, event: Event) -> None:
        while self.series["step"] and self.series["step"][-1] >= event["step"]:
            for values in self.series.values():  # steps that were rolled back to a checkpoint
                values.pop()
        self.step = event["step"]
        self.tokens += event["tokens"]
        for name, values in self.series.items():
            values.append(finite(event[name]))

    def _place(self) -> None:
        at = {
            device: (replica, stage)
            for replica, row in enumerate((self.plan or {}).get("placement", ()))
            for stage, device in enumerate(row)
        }
        for name, worker in self.workers.items():
            worker.replica, worker.stage = at.get(name, (-1, -1))
            if worker.stage < 0:
                worker.busy = None

    def become(self, other: Board) -> None:
        """Show what the other shows: of a run that is read anew."""
        for name in self.__slots__:
            setattr(self, name, getattr(other, name))

    @property
    def over(self) -> bool:
        return self.code is not None

    # ---- out

    def last(self, name: str) -> float | None:
        """The last step's value of a series."""
        values = self.series[name]
        return values[-1] if values else None

    def snapshot(self) -> dict[str, Any]:
        """Everything but the series: small enough to be sent whole twice a second."""
        return {
            "seq": self.seq, "run": self.run, "job": self.job, "phase": self.phase, "reason": self.reason,
            "code": self.code, "step": self.step, "steps": self.steps, "needed": self.needed,
            "recorded_step": self.recorded_step, "outlook": self.outlook,
            "eval_loss": self.eval_loss, "tokens": self.tokens,
            **{name: self.last(name) for name in SERIES if name != "step"},
            "workers": [
                {
                    "name": w.name, "region": w.region, "host": w.host, "memory_bytes": w.memory_bytes,
                    "state": "gone" if w.gone else ("spare" if w.stage < 0 and self.plan else "member"),
                    "reason": w.gone, "stage": w.stage, "replica": w.replica,
                    "busy": w.busy, "memory_used_bytes": w.memory_used_bytes,
                }
                for w in self.workers.values()
            ],
            "plan": self.plan, "plans": self.plans[-50:], "traffic": self.traffic(),
            "events": list(self.happened)[-100:],
        }  # fmt: skip

    def traffic(self) -> list[dict[str, Any]]:
        """What flowed between regions in the last recorded step, over all workers of each, by kind."""
        found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        for (a, b, kind), use in self.uses.items():
            ends = [self.workers[x].region or x if x in self.workers else "" for x in (a, b)]
            found.setdefault((ends[0], ends[1], kind), []).append(use)
        return [
            {
                "from": a, "to": b, "kind": kind, "codec": uses[0]["codec"], "flows": len(uses),
                "sent_bytes": sum(u["sent_bytes"] for u in uses),
                "raw_bytes": sum(u["raw_bytes"] for u in uses),
                "relative_error": finite(median(u["relative_error"] for u in uses)),
            }
            for (a, b, kind), uses in sorted(found.items())
        ]  # fmt: skip

    def points(self, after: int, limit: int) -> dict[str, Any]:
        """The series after step `after`, thinned to about `limit` points, and all evaluations after it."""
        steps = list(self.series["step"])
        first = next((i for i, step in enumerate(steps) if step is not None and step > after), len(steps))
        stride = max(1, math.ceil((len(steps) - first) / limit))
        # Counted from the end, so that the last step is always among them.
        picked = [i for i in range(first, len(steps)) if (len(steps) - 1 - i) % stride == 0]
        columns = {name: list(values) for name, values in self.series.items()}
        return {
            "series": {name: [values[i] for i in picked] for name, values in columns.items()},
            "evals": [list(x) for x in self.evals if x[0] > after],
        }


def _shape(plan: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "version": plan["version"],
        "stages": len(plan["partition"]),
        "replicas": len(plan["placement"]),
        "predicted_step_s": plan["predicted_step_s"],
    }


def _words(event: Event) -> str:
    """An event in one line, for a person."""
    kind = event.get("event")
    match kind:
        case "joined":
            where = f" from {event['region']}" if event["region"] else ""
            return f"{event['name']} joined{where} ({event['members']} of {event['needed']})"
        case "plan":
            shape = _shape(event)
            took = f"{shape['predicted_step_s']:.3g} s a step predicted"
            return f"plan {shape['version']}: {shape['stages']} stages x {shape['replicas']} replicas, {took}"
        case "phase":
            return f"{event['phase']}: {event['reason']}"
        case "checkpoint":
            return f"checkpoint of step {event['step']}: {event['n_bytes'] / 1e6:.1f} MB"
        case "generated":
            return f"{event['name']} writes: {event['text']}"
        case _:
            return str(event.get("reason") or kind)

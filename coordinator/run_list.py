"""Which runs there are below a directory, and each in a few numbers: for `coordinator runs` and the page.

Reads only, and little of each: sums are the database's work. A run is known by its state directory; whether
somebody drives it at this moment is not known here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from protos.log_lines import finite

from .history import job_of, reading
from .state_dir import DATABASE, ELSEWHERE

TOKEN_BESIDE = "token"
"""What a state directory has beside the file that says where its history is instead."""


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A run, as far as it came. Times are seconds since 1970; means are over the steps that count."""

    run: str
    job: str
    phase: str
    reason: str
    code: int | None
    """None: it has not ended, or nobody was there to say so."""
    began_s: float
    last_s: float
    """When something of it was written last."""
    attempts: int
    step: int
    """Steps done."""
    steps: int
    """Steps that the job asks for."""
    loss: float | None
    eval_loss: float | None
    tokens: int
    tokens_per_s: float | None
    step_s: float | None
    predicted_step_s: float | None
    """Of the plan that made the last step."""
    sent_bytes: float | None
    """A step."""
    stages: int | None
    replicas: int | None


def state_dirs(directory: Path, levels: int | None = None) -> list[Path]:
    """Directories that hold a run, `directory` itself among them, in order. `levels`: how deep to look."""
    found = set()
    for name in (DATABASE, ELSEWHERE):
        patterns = [f"**/{name}"] if levels is None else ["*/" * n + name for n in range(levels + 1)]
        for path in (p for pattern in patterns for p in directory.glob(pattern)):
            if path.is_file() and (name == DATABASE or (path.parent / TOKEN_BESIDE).is_file()):
                found.add(path.parent)
    return sorted(found)


def summary_of(state_dir: Path) -> RunSummary:
    """Raises StoreError if the directory holds no run that this version can read."""
    with reading(state_dir) as (store, run):
        [sums] = store.rows(
            "SELECT max(step) AS step, max(at_s) AS at_s, sum(tokens) AS tokens, sum(duration_s) AS spent_s,"
            " avg(duration_s) AS step_s, avg(sent_bytes) AS sent_bytes FROM steps WHERE discarded = 0"
        )
        last = store.rows(
            "SELECT loss, predicted_s FROM steps WHERE discarded = 0 ORDER BY step DESC LIMIT 1"
        )
        held = store.rows("SELECT loss FROM evals WHERE discarded = 0 ORDER BY step DESC LIMIT 1")
        plans = store.rows("SELECT plan, at_s FROM plans ORDER BY attempt DESC, version DESC LIMIT 1")
        [attempts] = store.rows(
            "SELECT count(*) AS n, max(started_s) AS began_s, max(ended_s) AS ended_s FROM attempts"
        )
    job = job_of(run, state_dir)
    shape = _shape(plans[0]["plan"]) if plans else (None, None)
    times = (run["created_s"], sums["at_s"], attempts["began_s"], attempts["ended_s"],
             plans[0]["at_s"] if plans else None)  # fmt: skip
    spent_s, tokens = sums["spent_s"] or 0.0, int(sums["tokens"] or 0)
    return RunSummary(
        run=run["run"], job=job.name, phase=run["phase"], reason=run["reason"], code=run["code"],
        began_s=run["created_s"], last_s=max(t for t in times if t is not None), attempts=attempts["n"],
        step=0 if sums["step"] is None else sums["step"] + 1, steps=job.steps,
        loss=finite(last[0]["loss"]) if last else None, eval_loss=finite(held[0]["loss"]) if held else None,
        tokens=tokens, tokens_per_s=tokens / spent_s if spent_s > 0 else None,
        step_s=sums["step_s"], predicted_step_s=finite(last[0]["predicted_s"]) if last else None,
        sent_bytes=None if sums["sent_bytes"] is None else float(sums["sent_bytes"]),
        stages=shape[0], replicas=shape[1],
    )  # fmt: skip


def _shape(plan: str) -> tuple[int | None, int | None]:
    """Stages and replicas, without the work of checking the plan."""
    try:
        body = json.loads(plan)
        return len(body["partition"]), len(body["placement"])
    except (ValueError, KeyError, TypeError):
        return None, None

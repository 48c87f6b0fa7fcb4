"""What a run must be after faults: at its end, with an undisturbed one's weights, and with nothing left over.

For `tests/integration/test_recovery.py` and `tests/benchmarks/faults.py`: a small model on real processes,
whose ranks are given by a plan and kept by the job's shape, so that arithmetic has one order however often a
spare takes a place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from safetensors.numpy import load_file

from coordinator.history import read_history
from coordinator.store import Store
from deploy.local import LocalCluster, LocalOptions

TEXT = Path(__file__).parent / "data" / "text.txt"
GLOBAL_BATCH, SAVE_EVERY = 8, 4
JOB = f"""
name: survive
model: {{family: gpt2, layers: 2, hidden: 32, heads: 4}}
data: {{files: ["{TEXT}"], held_out: 0.05, eval_samples: 4}}
sequence_length: 16
global_batch: {GLOBAL_BATCH}
micro_batch: 2
steps: STEPS
optimizer: {{lr: 1e-2, warmup_steps: 2, eps: 1e-4}}
checkpoint: {{every: {SAVE_EVERY}, keep: 2}}
parallelism: {{stages: 2, replicas: REPLICAS}}
"""
N_FILES = 8
"""Of a checkpoint: weights and optimizer state of four layers."""


def cluster_of(
    directory: Path,
    name: str,
    replicas: int,
    steps: int,
    spares: int,
    options_of: Mapping[str, tuple[str, ...]] | None = None,
    more_job: str = "",
    **changes: Any,
) -> LocalCluster:
    """A run of two stages and spares: rank r is worker w<r>. `more_job`: lines of the job file."""
    job, plan = directory / f"job-{name}.yaml", directory / f"plan-{replicas}.json"
    job.write_text(JOB.replace("REPLICAS", str(replicas)).replace("STEPS", str(steps)) + more_job)
    document = {
        "version": 1,
        "placement": [["w0", "w1"], ["w2", "w3"]][:replicas],
        "partition": [[0, 2], [2, 4]],
        "micro_batches": [4 // replicas] * replicas,
        "schedule": "1f1b",
        "micro_batch": 2,
    }
    plan.write_text(json.dumps(document))
    told = dict(options_of or {})  # a directory of this run's own, where its faults are told apart
    told["worker"] = (*told.get("worker", ()), "--state-dir", str(directory / name / "workers"))
    options = LocalOptions(
        workers=2 * replicas + spares, state_dir=directory / name, plan=plan, options_of=told
    )
    return LocalCluster(job, replace(options, **changes))


def fail_at(*faults: str) -> tuple[str, ...]:
    """These faults as options of a worker."""
    return tuple(word for fault in faults for word in ("--fail-at", fault))


def weights(directory: Path, name: str, steps: int) -> dict[str, str]:
    """File -> hash, of the last checkpoint: weights and optimizer state of every layer."""
    last = directory / name / "checkpoints" / f"step-{steps:06d}"
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(last.glob("*.safetensors"))}


def furthest(directory: Path, name: str, undisturbed: str, steps: int) -> float:
    """The most a number of the last checkpoint is off the undisturbed run's, over its tensor's largest."""
    off = 0.0
    ours, theirs = (directory / n / "checkpoints" / f"step-{steps:06d}" for n in (name, undisturbed))
    for file in sorted(theirs.glob("*.safetensors")):
        found = load_file(ours / file.name)
        for key, wanted in load_file(file).items():
            scale = np.abs(wanted).max(initial=0.0) or 1.0
            off = max(off, float(np.abs(found[key] - wanted).max(initial=0.0) / scale))
    return off


def ledger_defect(directory: Path, name: str, steps: int) -> str:
    """'' if every sample of every step counts once, whatever was done twice; else what is wrong."""
    with Store(directory / name, read_only=True) as store:
        ranges = store.ledger().ranges
    stand = [s.step for s in read_history(directory / name).steps]
    if ranges != ((0, steps * GLOBAL_BATCH),):
        return f"found the samples {ranges}, required 0 to {steps * GLOBAL_BATCH} once"
    return "" if stand == list(range(steps)) else f"found the steps {stand}, required 0 to {steps - 1} once"


def left_over(directory: Path) -> list[str]:
    """Processes of runs in `directory` that are still there, and so their sockets."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = " ".join(process.info["cmdline"] or [])
        if str(directory) in words and ".cli" in words and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(words)
    return found


def happened(directory: Path, name: str) -> list[str]:
    """Faults as `phase@step:how` that workers said they met."""
    logs = [f.read_text(errors="replace") for f in sorted((directory / name / "logs").glob("w*.log"))]
    said = [json.loads(line) for log in logs for line in log.splitlines() if '"event": "fault"' in line]
    return [f"{x['phase']}@{x['step']}:{x['how']}" for x in said]


def steps_of(events: Sequence[Mapping[str, Any]]) -> list[int]:
    """The steps that were committed, in order, done again or not."""
    return [int(e["step"]) for e in events if e["event"] == "step"]

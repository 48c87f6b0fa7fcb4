"""The jobs of `jobs/families`: four workers train what one process would."""

from __future__ import annotations

from pathlib import Path

import pytest

from scheduler.combinations import BYTE_VOCAB
from scheduler.job import JobSpec, parse_job
from scheduler.mixers import MIXERS
from tests.worker.pipelines import make_plan, sequence_plan, train, train_plainly

JOBS = sorted((Path(__file__).parents[2] / "jobs" / "families").glob("*.yaml"))
every_job = pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)


def job_of(path: Path, **changes: object) -> JobSpec:
    job = parse_job(path.read_text(), path.name)
    model = job.shape.model_copy(update={"vocab": BYTE_VOCAB})
    return job.model_copy(update={"model": model, **changes})


def test_every_family_of_parts_has_a_job() -> None:
    named = {part.name for path in JOBS for block in job_of(path).model.blocks for part in block}
    trainable = {name for name, kind in MIXERS.items() if kind().is_causal}
    assert named == trainable


@every_job
def test_four_workers_train_as_one_process_does(path: Path) -> None:
    """Two stages of two replicas, weights and all. AdamW's eps as in `test_equality`."""
    job = job_of(path, sequence_length=24, steps=4)
    optimizer = job.optimizer.model_copy(update={"eps": 1e-4, "warmup_steps": 0})
    job = job.model_copy(update={"optimizer": optimizer})
    losses, weights = train_plainly(job)
    run = train(job, sequence_plan(job, 2, 2) if job.split == "sequence" else make_plan(job, 2, (2, 2)))
    assert run.losses == pytest.approx(losses, rel=1e-5)
    assert losses[-1] < losses[0]
    trained = run.weights()
    assert trained.keys() == weights.keys()
    for name, value in trained.items():
        worst = (value - weights[name]).abs().max() / weights[name].abs().max()
        assert worst <= 1e-4, f"{name}: {worst:.1e}"

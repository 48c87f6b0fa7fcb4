"""What simulating commands make of a job before anybody has read its data."""

from __future__ import annotations

from pathlib import Path

import pytest

from scheduler.planner import make_plan
from scheduler.scenarios import scenario
from sim import inputs as i

JOB = """
name: again
model: {preset: gpt2}
data: {files: ["-"], eval_samples: 0, samples: %d}
sequence_length: 1024
global_batch: 16
micro_batch: 1
steps: 1000
parallelism: {stages: 4, replicas: 1}
compression: {activations: {auto: {change: 0.2}}, gradients: auto}
"""


@pytest.mark.parametrize(("samples", "family"), [(0, "kbit"), (100, "acsgd"), (16_000, "kbit")])
def test_a_job_says_how_often_its_samples_come_again(tmp_path: Path, samples: int, family: str) -> None:
    (tmp_path / "job.yaml").write_text(JOB % samples)
    links = scenario("worldwide", n_devices=8)
    gpus = i.read_gpus(["a100-40"], "fp16")
    job = i.read_job(i.JobInput(job=tmp_path / "job.yaml"))
    work = i.read_work(job, links.devices, gpus)
    assert (work.model.visits.n_samples, work.model.visits.total) == (samples, 16_000)
    plan = make_plan(job, work.model, work.profiles, links, 1)
    used = {name.partition(":")[0] for row in plan.codecs.activation for name in row}
    assert family in used
    assert used <= {family, "identity", "fp16", "tile"}

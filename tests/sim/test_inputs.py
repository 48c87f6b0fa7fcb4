"""What simulating commands make of a job before anybody has read its data."""

from __future__ import annotations

from pathlib import Path

import pytest

from scheduler.planner import make_plan
from scheduler.remembered import without_choosing_it
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


@pytest.mark.parametrize(("samples", "again"), [(0, False), (100, True), (16_000, False)])
def test_a_job_says_how_often_its_samples_come_again(tmp_path: Path, samples: int, again: bool) -> None:
    """AC-SGD is one to choose where they do; whether a plan is faster with it is the search's to find out."""
    (tmp_path / "job.yaml").write_text(JOB % samples)
    links = scenario("worldwide", n_devices=8)
    gpus = i.read_gpus(["a100-40"], "fp16")
    job = i.read_job(i.JobInput(job=tmp_path / "job.yaml"))
    work = i.read_work(job, links.devices, gpus)
    assert (work.model.visits.n_samples, work.model.visits.total) == (samples, 16_000)
    assert (without_choosing_it(job, work.model) is not None) == again


def test_with_more_to_choose_from_no_plan_is_slower(tmp_path: Path) -> None:
    """gpt2 with 1,024 tokens on eight devices in eight cities: that `auto` could take AC-SGD once led the
    search to a plan that was 3 % slower, because other bytes make another landscape."""
    links = scenario("worldwide", n_devices=8)
    gpus = i.read_gpus(["a100-40"], "fp16")
    step_s: dict[int, float] = {}
    for samples in (0, 100):
        (tmp_path / "job.yaml").write_text(JOB.replace("{stages: 4, replicas: 1}", "auto") % samples)
        job = i.read_job(i.JobInput(job=tmp_path / "job.yaml"))
        work = i.read_work(job, links.devices, gpus)
        assert (without_choosing_it(job, work.model) is not None) == (samples > 0)
        step_s[samples] = make_plan(job, work.model, work.profiles, links, 1).predicted_step_s
    assert step_s[100] <= step_s[0] * (1 + 1e-9)

"""A cluster as scripts use it, without its processes: jobs that are written, steps that are read, errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.resume import open_run
from deploy.api import LinkOptions, LocalCluster, LocalOptions, ProcessFailed
from deploy.processes import Event
from deploy.run_local import run_local
from deploy.steps import step_of
from scheduler.checkpoint_layout import Manifest
from scheduler.exit_codes import ExitCode
from scheduler.job import job_to_json
from sim.api import load_job

TINY = Path(__file__).parents[2] / "jobs" / "tiny.yaml"
STEP: Event = {
    "event": "step", "step": 1, "steps": 2, "loss": 3.5, "tokens": 8, "tokens_per_s": 4.0, "step_s": 2.0,
    "predicted_step_s": 1.5, "grad_norm": 0.5, "sent_bytes": 10, "raw_bytes": 20, "more": "to come",
}  # fmt: skip


def ended(monkeypatch: pytest.MonkeyPatch, events: list[Event], code: int) -> LocalCluster:
    """A cluster whose coordinator says `events` and ends with `code`."""
    cluster = LocalCluster(TINY)
    monkeypatch.setattr(cluster, "events", lambda: iter(events))
    monkeypatch.setattr(cluster, "wait", lambda: code)
    return cluster


def test_steps_are_read_from_the_coordinators_events(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = ended(monkeypatch, [{"event": "phase"}, STEP, {**STEP, "step": 2}], ExitCode.OK)
    steps = list(cluster.steps())
    assert [s.step for s in steps] == [1, 2]
    assert steps[0].loss == 3.5
    assert step_of({"event": "phase"}) is None


def test_a_run_that_ends_badly_raises_with_code_reason_and_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = ended(monkeypatch, [STEP, {"event": "failed", "reason": "w1 is gone"}], ExitCode.WORKER_LOST)
    steps = cluster.steps()
    assert next(steps).step == 1
    with pytest.raises(ProcessFailed, match=r"WORKER_LOST.*w1 is gone.*logs") as failed:
        next(steps)
    assert failed.value.code == ExitCode.WORKER_LOST


def test_a_job_that_a_script_made_is_written_so_that_it_reads_back(tmp_path: Path) -> None:
    job = load_job(TINY).model_copy(update={"steps": 3})
    cluster = LocalCluster(job, state_dir=tmp_path, data_dir=TINY.parent)
    cluster._write_job(job)
    assert load_job(cluster.job) == job
    assert cluster.data_dir == TINY.parent


def test_what_is_said_beside_the_options_replaces_theirs(tmp_path: Path) -> None:
    options = LocalOptions(workers=2, links=LinkOptions("four_cities", delay_scale=0.5), state_dir=tmp_path)
    assert LocalCluster(TINY, options).options == options
    changed = LocalCluster(str(TINY), options, workers=3, links="seattle6").options
    assert (changed.workers, changed.links, changed.state_dir) == (3, LinkOptions("seattle6"), tmp_path)


def test_a_run_that_is_done_starts_no_worker_when_it_is_resumed(tmp_path: Path) -> None:
    job = load_job(TINY)
    opened = open_run(tmp_path, job, resume=False, resume_step=None, now_s=1.0)
    opened.checkpoints.directory(job.steps).mkdir(parents=True)
    opened.checkpoints.write_manifest(
        Manifest(opened.run, job.steps, (), 8, job_to_json(job), loss=1.5, eval_loss=None)
    )
    opened.store.end_attempt("finished", ExitCode.OK, "all steps are done", 2.0)
    opened.close()
    options = LocalOptions(workers=2, state_dir=tmp_path, resume=True)
    with LocalCluster(TINY, options) as cluster:
        [event] = cluster.events()
        assert (event["event"], event["step"], event["loss"]) == ("finished", job.steps, 1.5)
        assert (cluster.workers, cluster.wait()) == ({}, ExitCode.OK)


@pytest.mark.parametrize("ran_before", [False, True])
def test_the_report_may_be_where_a_fresh_run_keeps_its_state(
    ran_before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `make train` has it, on a machine that is as new as the run."""

    class Begun(Exception):
        pass

    def begin(_: LocalCluster) -> LocalCluster:
        raise Begun

    monkeypatch.setattr(LocalCluster, "__enter__", begin)
    options = LocalOptions(state_dir=tmp_path / "run")
    if ran_before:
        (options.state_dir / "logs").mkdir(parents=True)
        (options.state_dir / "old").touch()
    report = options.state_dir / "report"
    with pytest.raises(Begun):
        run_local(TINY, options, fresh=True, report=report, export=None, as_json=True)
    assert not (options.state_dir / "old").exists()

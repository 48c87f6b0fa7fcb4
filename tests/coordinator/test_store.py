"""History in SQLite, opening a state directory, and what a report reads from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.commands import RecordConduct, RecordEval, RecordStep
from coordinator.history import read_history
from coordinator.records import Restore
from coordinator.resume import OpenError, ended, open_run, read_token, token
from coordinator.state_dir import StoreError
from coordinator.store import Store
from scheduler.bad_numbers import Conduct
from scheduler.exit_codes import ExitCode

from .job import a_job
from .test_checkpoints import save
from .world import line_plan


def record(step: int, loss: float = 1.0) -> RecordStep:
    return RecordStep(step, 1, loss, 128, 1.0, 0.5, 10, 20, step * 8, (step + 1) * 8)


def test_a_second_coordinator_is_refused_the_directory(tmp_path: Path) -> None:
    first = open_run(tmp_path, a_job(), resume=False, resume_step=None, now_s=1.0)
    with pytest.raises(OpenError, match="another coordinator using it") as e:
        open_run(tmp_path, a_job(), resume=False, resume_step=None, now_s=1.0)
    assert e.value.code is ExitCode.STATE_DIR
    first.close()
    open_run(tmp_path, a_job(), resume=False, resume_step=None, now_s=1.0).close()


def test_a_directory_that_holds_a_run_is_not_overwritten(tmp_path: Path) -> None:
    opened = open_run(tmp_path, a_job(), resume=False, resume_step=None, now_s=1.0)
    opened.store.step(record(0), 0.4, 2.0)
    opened.close()
    with pytest.raises(OpenError, match="pass --resume to continue it") as e:
        open_run(tmp_path, a_job(), resume=False, resume_step=None, now_s=1.0)
    assert e.value.code is ExitCode.STATE_DIR


def test_nothing_to_resume_is_said(tmp_path: Path) -> None:
    with pytest.raises(OpenError, match="no run to resume") as e:
        open_run(tmp_path, a_job(), resume=True, resume_step=None, now_s=1.0)
    assert e.value.code is ExitCode.CHECKPOINT_MISSING


def test_a_run_killed_before_its_first_checkpoint_starts_again_from_step_0(tmp_path: Path) -> None:
    first = open_run(tmp_path, a_job(), resume=False, resume_step=None, now_s=1.0)
    first.store.step(record(0), 0.4, 2.0)
    first.close()
    again = open_run(tmp_path, a_job(), resume=True, resume_step=None, now_s=3.0)
    assert again.restore is None
    assert again.run == first.run
    assert "step 0" in again.notes[0]
    assert again.store.ledger().n_consumed == 0, "the discarded step's samples are free again"
    again.close()


def test_resume_discards_steps_after_the_checkpoint_and_the_ledger_stays_exact(tmp_path: Path) -> None:
    first = open_run(tmp_path, a_job(), resume=False, resume_step=None, now_s=1.0)
    for step in range(5):
        first.store.step(record(step, 5.0 - step), 0.4, 2.0 + step)
    first.store.evaluation(RecordEval(3, 2.5, 10), 5.0)
    first.store.evaluation(RecordEval(4, 2.4, 10), 6.0)
    manifest = save(first.checkpoints, 3, 2.5)
    first.close()
    again = open_run(tmp_path, a_job(), resume=True, resume_step=None, now_s=9.0)
    assert again.restore == Restore(3, manifest.files, 2.5, 1.5)
    assert again.store.ledger().ranges == ((0, 24),)
    again.store.step(record(3, 1.9), 0.4, 10.0)
    again.close()
    history = read_history(tmp_path)
    assert history.losses == (5.0, 4.0, 3.0, 1.9)
    assert [x.step for x in history.evals] == [3]
    assert [s.attempt for s in history.steps] == [1, 1, 1, 2]


@pytest.mark.parametrize(
    ("change", "key"), [({"seed": "7"}, "seed"), ({"global_batch": "4"}, "global_batch")]
)
def test_another_job_is_not_resumed(tmp_path: Path, change: dict[str, str], key: str) -> None:
    open_run(tmp_path, a_job(), resume=False, resume_step=None, now_s=1.0).close()
    with pytest.raises(OpenError, match=f"`{key}`"):
        open_run(tmp_path, a_job(**change), resume=True, resume_step=None, now_s=1.0)


def test_more_steps_and_another_parallelism_may_be_asked_of_a_resumed_run(tmp_path: Path) -> None:
    open_run(tmp_path, a_job(), resume=False, resume_step=None, now_s=1.0).close()
    job = a_job(steps="99", parallelism="{stages: 2}")
    open_run(tmp_path, job, resume=True, resume_step=None, now_s=1.0).close()
    assert read_history(tmp_path).job.steps == 99


def test_a_corrupt_last_checkpoint_is_refused_and_an_earlier_one_taken_only_when_asked(
    tmp_path: Path,
) -> None:
    first = open_run(tmp_path, a_job(), resume=False, resume_step=None, now_s=1.0)
    save(first.checkpoints, 3)
    save(first.checkpoints, 6)
    first.close()
    (first.checkpoints.directory(6) / "layer-0001.safetensors").write_bytes(b"x")
    with pytest.raises(OpenError, match=r"layer-0001.safetensors.*--resume-step \(3\)") as e:
        open_run(tmp_path, a_job(), resume=True, resume_step=None, now_s=1.0)
    assert e.value.code is ExitCode.CHECKPOINT_CORRUPT
    again = open_run(tmp_path, a_job(), resume=True, resume_step=3, now_s=1.0)
    assert again.restore is not None
    assert again.restore.step == 3
    again.close()
    with pytest.raises(OpenError, match="no checkpoint of step 5; there are: 3") as e:
        open_run(tmp_path, a_job(), resume=True, resume_step=5, now_s=1.0)
    assert e.value.code is ExitCode.CHECKPOINT_MISSING


def test_the_token_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    made, path = token(tmp_path, None)
    assert path.stat().st_mode & 0o777 == 0o600
    assert token(tmp_path, None)[0] == made == read_token(path)
    assert len(made) > 32
    path.write_text("short\n")
    with pytest.raises(OpenError, match="found 5 characters"):
        read_token(path)


def test_a_plan_is_kept_and_read_back_equal(tmp_path: Path) -> None:
    opened = open_run(tmp_path, a_job(), resume=False, resume_step=None, now_s=1.0)
    plan = line_plan(1, ["a", "b"])
    opened.store.plan(plan, 1.0)
    opened.close()
    assert read_history(tmp_path).plan == plan


def test_files_that_are_no_history_are_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no run.sqlite"):
        read_history(tmp_path)
    (tmp_path / "run.sqlite").write_text("not a database, however long it may be" * 99)
    with pytest.raises(StoreError, match="required a database"):
        Store(tmp_path)


def test_bad_conduct_and_quarantine_outlast_the_coordinator(tmp_path: Path) -> None:
    first = open_run(tmp_path, a_job(), resume=False, resume_step=None, now_s=1.0)
    conduct = Conduct({"key-a": (3, 7), "key-b": (7,)})
    first.store.conduct(RecordConduct(conduct, frozenset(), "step 7: far off"), 2.0)
    worse = conduct.add(["key-a"], 9)
    first.store.conduct(RecordConduct(worse, frozenset({"key-a"}), "step 9: far off"), 3.0)
    first.close()
    again = open_run(tmp_path, a_job(), resume=True, resume_step=None, now_s=4.0)
    assert again.store.last_conduct() == (worse, frozenset({"key-a"}))
    again.close()


def test_a_run_that_is_done_says_so_when_it_is_resumed(tmp_path: Path) -> None:
    first = open_run(tmp_path, a_job(), resume=False, resume_step=None, now_s=1.0)
    save(first.checkpoints, 8, 2.5)
    first.close()
    died = open_run(tmp_path, a_job(), resume=True, resume_step=None, now_s=3.0)
    assert not died.over, "workers may wait to be told"
    assert "the run was not ended: it ends once workers are back" in " ".join(died.notes)
    died.store.end_attempt("finished", ExitCode.OK, "all 8 steps are done", 3.5)
    died.close()
    again = open_run(tmp_path, a_job(), resume=True, resume_step=None, now_s=4.0)
    again.close()
    assert "all 8 steps were done already" in again.over
    event = ended(again)
    assert (event["step"], event["eval_loss"]) == (8, 2.5)
    assert Path(event["checkpoint"]).is_dir()
    assert read_history(tmp_path).phase == "finished"
    assert read_history(tmp_path).attempts == 2, "nothing was begun"
    longer = open_run(tmp_path, a_job(steps="9"), resume=True, resume_step=None, now_s=5.0)
    longer.close()
    assert (longer.over, longer.restore and longer.restore.step) == ("", 8)
    assert read_history(tmp_path).phase == "gathering"


def test_an_earlier_checkpoint_of_a_run_that_is_done_goes_on(tmp_path: Path) -> None:
    first = open_run(tmp_path, a_job(), resume=False, resume_step=None, now_s=1.0)
    for step in (4, 8):
        save(first.checkpoints, step, 2.5)
    first.store.end_attempt("finished", ExitCode.OK, "all 8 steps are done", 2.0)
    first.close()
    again = open_run(tmp_path, a_job(), resume=True, resume_step=4, now_s=3.0)
    again.close()
    assert (again.over, again.restore and again.restore.step) == ("", 4)

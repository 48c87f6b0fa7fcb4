"""`coordinator ledger` on stores: exact, exact after going back, and damaged by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from coordinator.cli import app
from coordinator.commands import MakePlan
from coordinator.measurements import keep_measurements
from coordinator.planning import Planning, topology_of
from coordinator.resume import open_run
from coordinator.store import Store
from scheduler.cost import predict
from scheduler.exit_codes import ExitCode
from scheduler.profile import DeviceProfile, ModelProfile
from scheduler.topology import Device
from scheduler.visits import Visits

from .job import a_job
from .test_store import record
from .world import LAYERS, line_plan


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """Ten steps of eight samples each, of 20 an epoch; it went back from step 7 to step 4 in between."""
    opened = open_run(tmp_path, a_job(), resume=False, resume_step=None, now_s=1.0)
    with opened.store as store:
        store.plan(line_plan(1, ["a"]), 1.0)
        for step in range(7):
            store.step(record(step), 0.4, 2.0)
        store.plan(line_plan(1, ["a"]), 1.0)
        store.rewind(4, "b is gone", 3.0)
        for step in range(4, 10):
            store.step(record(step), 0.4, 4.0)
        taken_up = store.last_commit()
    assert taken_up is not None
    assert taken_up.done == 10, "the plan that was made in the attempt before is found"
    assert opened.lock is not None
    opened.lock.close()
    ones = (0.01,) * len(LAYERS)
    model = ModelProfile(LAYERS, 2, 16, visits=Visits(20, 80))
    request = MakePlan(1, model, (Device("a"),), (DeviceProfile("a", ones, ones, ones),), ())
    topology, plan = topology_of(request), line_plan(1, ["a"])
    predicted = predict(plan, model, request.profiles, topology)
    keep_measurements(tmp_path, Planning(request, topology, plan, predicted))
    return tmp_path


def ledger(state_dir: Path, *more: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["ledger", "--state-dir", str(state_dir), *more])
    return result.exit_code, result.output


def test_a_run_that_went_back_is_proved(state_dir: Path) -> None:
    code, text = ledger(state_dir)
    assert code == ExitCode.OK
    assert "10 steps count, of 2 attempts" in text
    assert "epoch 3 (complete): 20 of 20 samples used exactly once" in text
    assert text.rstrip().endswith("the ledger is exact")
    code, text = ledger(state_dir, "--json")
    assert json.loads(text)["holds"] is True


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        (
            "UPDATE samples SET discarded = 0 WHERE step = 5",
            "step 5 consumed samples and is not there itself",
        ),
        ("UPDATE steps SET discarded = 0 WHERE step = 5", "step 5 counts twice"),
        ("DELETE FROM samples WHERE step = 2", "step 2: nothing says which samples"),
        ("DELETE FROM steps WHERE step = 9", "step 9 consumed samples and is not there itself"),
        ("UPDATE samples SET first = first - 1 WHERE step = 3", "step 3: found positions 23 .. 31"),
    ],
)
def test_a_store_that_was_tampered_with_proves_nothing(state_dir: Path, sql: str, says: str) -> None:
    with Store(state_dir) as store:
        store.rows(sql)
    code, text = ledger(state_dir)
    assert code == ExitCode.LEDGER
    assert says in text
    assert text.rstrip().endswith("the ledger is NOT exact")


def test_no_run_and_no_plan_are_said(tmp_path: Path) -> None:
    code, text = ledger(tmp_path)
    assert code == ExitCode.STATE_DIR
    assert "found no run.sqlite" in text
    opened = open_run(tmp_path, a_job(), resume=False, resume_step=None, now_s=1.0)
    opened.close()
    code, text = ledger(tmp_path)
    assert code == ExitCode.STATE_DIR
    assert "required a run that has begun" in text

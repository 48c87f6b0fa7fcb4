"""Runs that have ended: listed in numbers, opened, compared; and nothing opened that was not listed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

pytest.importorskip("starlette")
jsonschema = pytest.importorskip("jsonschema")

from starlette.testclient import TestClient  # noqa: E402 (after the skips)

from coordinator.cli import app  # noqa: E402
from coordinator.dashboard.board import Board  # noqa: E402
from coordinator.dashboard.compare import differing  # noqa: E402
from coordinator.dashboard.replay import board_of  # noqa: E402
from coordinator.dashboard.runs import KEPT_BOARDS, MAX_COMPARED, Below, Runs  # noqa: E402
from coordinator.dashboard.server import Dashboard  # noqa: E402
from coordinator.history import read_history  # noqa: E402
from coordinator.run_list import state_dirs, summary_of  # noqa: E402
from coordinator.state_dir import StoreError, keep_elsewhere  # noqa: E402
from coordinator.store import Store  # noqa: E402
from scheduler.job import job_to_json  # noqa: E402

from ..job import a_job  # noqa: E402
from .recorded import BEGAN_S, record  # noqa: E402
from .test_board import answered  # noqa: E402


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two that have ended, and one deeper down that has not."""
    record(tmp_path / "runs" / "a", "tiny-a", 8)
    record(tmp_path / "runs" / "b", "tiny-b", 6, began_s=BEGAN_S + 60, schedule="{name: gpipe}", seed="7")
    record(tmp_path / "runs" / "old" / "c", "tiny-c", 4, began_s=BEGAN_S - 60, ended=False)
    return tmp_path / "runs"


@pytest.fixture
def client(runs: Path) -> TestClient:
    """The page of run b, which opens those below `runs`."""
    return TestClient(Dashboard(board_of(runs / "b"), runs / "b", below=Below(runs)).app)


def get(client: TestClient, path: str, **query: Any) -> Any:
    answer = client.get(path, params=query)
    assert answer.status_code == 200, answer.text
    jsonschema.validate(answer.json(), answered(path))
    return answer.json()


def test_every_run_is_listed_in_numbers_the_last_begun_first(client: TestClient, runs: Path) -> None:
    rows = get(client, "/api/runs")
    assert [(r["id"], r["own"], r["phase"], r["step"]) for r in rows] == [
        ("b", True, "finished", 6), ("a", False, "finished", 8), ("old/c", False, "gathering", 4)
    ]  # fmt: skip
    a, history = rows[1], read_history(runs / "a")
    assert (a["run"], a["job"], a["code"], a["steps"]) == ("tiny-a", "tiny", 0, 8)
    assert (a["loss"], a["eval_loss"]) == (history.losses[-1], history.evals[-1].loss)
    assert a["tokens"] == 8 * 128
    assert a["tokens_per_s"] == pytest.approx(128 / 0.4)
    assert a["step_s"] == pytest.approx(0.4)
    assert (a["predicted_step_s"], a["sent_bytes"], a["stages"], a["replicas"]) == (0.45, 10.0, 2, 2)
    assert (a["began_s"], a["last_s"]) == (BEGAN_S, BEGAN_S + 10.0)


def test_discarded_steps_do_not_count(runs: Path) -> None:
    with Store(runs / "a") as store:
        store.begin_attempt(3, job_to_json(a_job()), BEGAN_S + 20)
    found = summary_of(runs / "a")
    assert (found.step, found.attempts, found.tokens) == (3, 2, 3 * 128)
    assert found.loss == read_history(runs / "a").losses[-1]
    assert found.eval_loss is None
    assert found.last_s == BEGAN_S + 20


def test_another_run_is_opened_with_all_that_is_kept_of_it(client: TestClient, runs: Path) -> None:
    own, other = get(client, "/api/run"), get(client, "/api/run", run="a")
    assert (own["run"], other["run"]) == ("tiny-b", "tiny-a")
    assert other["phase"] == "finished"
    assert other == board_of(runs / "a").snapshot()
    assert any("no heartbeat" in event["text"] for event in other["events"])
    assert len(other["plans"]) == 2
    assert get(client, "/api/steps", run="a")["series"]["step"] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert get(client, "/api/steps", run="a", after=6)["series"]["step"] == [7, 8]
    assert get(client, "/api/steps", run="a")["evals"][-1][0] == 8
    assert get(client, "/api/timeline", run="old/c")["measured"]
    assert get(client, "/api/links", run="a") == []


def test_what_is_written_meanwhile_is_seen(client: TestClient, runs: Path) -> None:
    assert get(client, "/api/run", run="old/c")["code"] is None
    with Store(runs / "old" / "c") as store:
        store.event("failed", {"event": "failed", "code": 9, "reason": "no worker is left"}, BEGAN_S)
        store.set_phase("failed", "no worker is left")
    assert get(client, "/api/run", run="old/c")["reason"] == "no worker is left"
    assert get(client, "/api/runs")[-1]["phase"] == "failed"


@pytest.mark.parametrize("name", ["", "nothing", "../b", "/etc", "a/../b", "old", "a\0", "x" * 5000])
def test_nothing_is_opened_that_was_not_found(client: TestClient, name: str) -> None:
    for path in ("/api/run", "/api/steps", "/api/timeline", "/api/links"):
        refused = client.get(path, params={"run": name})
        assert refused.status_code == 404
        assert "required one that /api/runs lists" in refused.json()["error"]
    assert client.get("/api/compare", params={"run": ["a", name]}).status_code == 404


def test_settings_in_which_jobs_differ_are_told(client: TestClient) -> None:
    found = get(client, "/api/compare", run=["b", "a"])
    assert found["runs"] == ["b", "a"]
    assert {row["key"]: row["values"] for row in found["settings"]} == {
        "schedule.name": ["gpipe", "1f1b"], "seed": ["7", "0"]
    }  # fmt: skip


@pytest.mark.parametrize("names", [[], ["a"], ["a", "a"], [f"{i}" for i in range(MAX_COMPARED + 1)]])
def test_two_or_more_are_compared(client: TestClient, names: list[str]) -> None:
    assert client.get("/api/compare", params={"run": names}).status_code == 400


def test_a_default_that_is_written_down_is_no_difference() -> None:
    assert differing([a_job(), a_job(seed="0")]) == []
    [row] = differing([a_job(), a_job(prompt='"To be"')])
    assert row == {"key": "prompt", "values": ["", "To be"]}


def test_without_a_directory_of_runs_there_is_only_its_own(runs: Path) -> None:
    client = TestClient(Dashboard(board_of(runs / "b"), runs / "b").app)
    assert [r["id"] for r in get(client, "/api/runs")] == ["."]
    assert client.get("/api/run", params={"run": "../a"}).status_code == 404
    assert get(client, "/api/run", run=".")["run"] == "tiny-b"


def test_beside_means_beside(runs: Path) -> None:
    found = Runs(runs / "b", Below(runs, levels=1)).rows()
    assert [r["id"] for r in found] == ["b", "a"]
    elsewhere = Runs(runs / "b", Below(runs / "old")).rows()
    assert [(r["id"], r["own"]) for r in elsewhere] == [("../b", True), ("c", False)]


def test_a_run_that_cannot_be_read_is_listed_with_why(client: TestClient, runs: Path) -> None:
    (runs / "broken").mkdir()
    (runs / "broken" / "run.sqlite").write_bytes(b"no database" * 200)
    (runs / "empty").mkdir()
    Store(runs / "empty").close()
    rows = {r["id"]: r for r in get(client, "/api/runs")}
    assert len(rows) == 5
    assert "not a database" in rows["broken"]["error"]
    assert "found no run" in rows["empty"]["error"]
    assert "not a database" in client.get("/api/run", params={"run": "broken"}).json()["error"]
    assert client.get("/api/compare", params={"run": ["a", "empty"]}).status_code == 404


def test_a_history_that_is_kept_elsewhere_is_found(runs: Path, tmp_path: Path) -> None:
    (runs / "a" / "run.sqlite").rename(tmp_path / "moved.sqlite")
    assert runs / "a" not in state_dirs(runs)
    keep_elsewhere(runs / "a", str(tmp_path / "moved.sqlite"))
    (runs / "a" / "token").write_text("x" * 43)
    assert runs / "a" in state_dirs(runs)
    assert summary_of(runs / "a").run == "tiny-a"


def test_only_a_few_boards_are_kept(tmp_path: Path) -> None:
    for i in range(KEPT_BOARDS + 2):
        record(tmp_path / f"{i}", f"run-{i}", 4)
    runs = Runs(tmp_path / "none", Below(tmp_path))
    for i in range(KEPT_BOARDS + 2):
        shown = runs.shown(f"{i}")
        assert shown is not None
        assert shown.board.run == f"run-{i}"
        assert runs.shown(f"{i}") is shown, "read once"
    assert len(runs._boards) == KEPT_BOARDS


def test_without_a_run_of_its_own_the_page_is_the_list(runs: Path, tmp_path: Path) -> None:
    client = TestClient(Dashboard(Board(), tmp_path / "none", below=Below(runs)).app)
    assert client.get("/", follow_redirects=False).headers["location"].endswith("/runs")
    assert "compare" in client.get("/").text
    assert client.get("/", params={"run": "a"}).url.path == "/"
    assert get(client, "/api/run")["run"] == ""


def test_the_command_lists_them(runs: Path) -> None:
    def run(*args: str) -> Any:
        return CliRunner().invoke(app, ["runs", *args])

    rows = [json.loads(line) for line in run(str(runs), "--json").stdout.splitlines()]
    assert [(r["state_dir"], r["run"], r["step"]) for r in rows] == [
        (str(runs / "a"), "tiny-a", 8), (str(runs / "b"), "tiny-b", 6), (str(runs / "old" / "c"), "tiny-c", 4)
    ]  # fmt: skip
    assert "tiny-a, 2026-09-21T" in run(str(runs)).stdout
    assert "320 tokens/s" in run(str(runs)).stdout
    none = run(str(runs / "a" / "none"))
    assert none.exit_code != 0
    assert "found no run" in none.stderr


def test_a_run_that_is_not_there_raises(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="found no"):
        summary_of(tmp_path)

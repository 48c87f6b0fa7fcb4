"""The board is what the run told it; the web side refuses whom it must and answers as documented."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
jsonschema = pytest.importorskip("jsonschema")

from prometheus_client.openmetrics.parser import text_string_to_metric_families  # noqa: E402 (after the skip)
from starlette.testclient import TestClient  # noqa: E402

from coordinator.commands import MakePlan  # noqa: E402
from coordinator.dashboard.board import Board  # noqa: E402
from coordinator.dashboard.openapi import DOCUMENT  # noqa: E402
from coordinator.dashboard.server import STATIC, Dashboard  # noqa: E402
from coordinator.events import LinkSample  # noqa: E402
from coordinator.links import LinksFile  # noqa: E402
from scheduler.profile import ModelProfile  # noqa: E402
from scheduler.topology import Device  # noqa: E402


def step(n: int, loss: float = 2.0) -> dict[str, Any]:
    return {
        "event": "step", "step": n, "steps": 9, "loss": loss, "tokens": 64, "tokens_per_s": 10.0,
        "step_s": 0.5, "predicted_step_s": 0.4, "grad_norm": 1.0, "sent_bytes": 100, "raw_bytes": 400,
    }  # fmt: skip


def joined(name: str, region: str) -> dict[str, Any]:
    return {
        "event": "joined", "name": name, "region": region, "host": "h", "memory_bytes": 1 << 30, "members": 1,
        "needed": 2,
    }  # fmt: skip


def plan(version: int, *replicas: tuple[str, ...]) -> dict[str, Any]:
    return {
        "event": "plan", "version": version, "placement": [list(r) for r in replicas],
        "partition": [[i, i + 1] for i in range(len(replicas[0]))], "micro_batches": [2] * len(replicas),
        "schedule": "1f1b", "micro_batch": 1, "predicted_step_s": 0.4, "reasons": ["the only one"],
    }  # fmt: skip


def use(a: str, b: str, sent: int) -> dict[str, Any]:
    return {
        "from": a, "to": b, "kind": "activation", "codec": "kbit:bits=4", "sent_bytes": sent,
        "raw_bytes": 8 * sent, "relative_error": 0.01,
    }  # fmt: skip


LISTENING = {"event": "listening", "run": "r-1", "steps": 9, "step": 0, "min_workers": 2}


def answered(path: str) -> dict[str, Any]:
    """The schema of what a path answers."""
    of: dict[str, Any] = DOCUMENT["paths"][path]["get"]["responses"]["200"]["content"]
    schema: dict[str, Any] = of["application/json"]["schema"]
    return schema


def board_of(*events: Mapping[str, Any]) -> Board:
    board = Board(job="j")
    for i, event in enumerate(events):
        board.take(event, 1000.0 + i)
    return board


@pytest.fixture
def board() -> Board:
    return board_of(
        LISTENING, joined("a", "Oregon"), joined("b", "Tokyo"), joined("c", ""),
        {"event": "phase", "phase": "running", "reason": "to step 9", "step": 0},
        plan(1, ("a", "b")), step(1), step(2, 1.5),
        {"event": "links", "links": [use("a", "b", 7), use("b", "a", 5)]},
        {"event": "eval", "step": 2, "eval_loss": 1.7},
        {"event": "left", "name": "c", "reason": "c is lost: no heartbeat"},
    )  # fmt: skip


def test_workers_have_their_place_and_their_reason(board: Board) -> None:
    found = {w["name"]: (w["state"], w["stage"], w["reason"]) for w in board.snapshot()["workers"]}
    assert found == {
        "a": ("member", 0, ""),
        "b": ("member", 1, ""),
        "c": ("gone", -1, "c is lost: no heartbeat"),
    }


def test_traffic_is_told_by_region(board: Board) -> None:
    [there, back] = board.traffic()
    assert (there["from"], there["to"], there["sent_bytes"], there["raw_bytes"]) == ("Oregon", "Tokyo", 7, 56)
    assert (back["from"], back["codec"]) == ("Tokyo", "kbit:bits=4")


def test_steps_that_were_rolled_back_are_forgotten(board: Board) -> None:
    for event in (step(3), step(4), step(3, 9.0)):
        board.take(event, 0.0)
    points = board.points(-1, 100)["series"]
    assert points["step"] == [1, 2, 3]
    assert points["loss"][-1] == 9.0


def test_a_number_that_is_none_is_null_and_not_nan(board: Board) -> None:
    board.take(step(3, math.nan), 0.0)
    assert board.snapshot()["loss"] is None


def test_a_look_for_a_faster_plan_is_kept_and_only_a_move_is_an_event(board: Board) -> None:
    before = len(board.snapshot()["events"])
    board.take({"event": "outlook", "step": 2, "moves": False, "reason": "nothing is 20 % faster"}, 0.0)
    assert board.snapshot()["outlook"] == "after step 2: nothing is 20 % faster"
    assert len(board.snapshot()["events"]) == before
    board.take({"event": "outlook", "step": 4, "moves": True, "reason": "1.2 s instead of 2 s"}, 0.0)
    assert board.snapshot()["events"][-1]["text"] == "1.2 s instead of 2 s"


def test_a_plan_has_its_reason_and_workers_how_busy_they_were(board: Board) -> None:
    lost = "b is lost: no heartbeat"
    used = {"busy_s": 0.3, "wait_s": 0.1, "reduce_s": 0.05, "idle_s": 0.05, "memory_used_bytes": 7}
    for event in (
        {"event": "use", "step": 2, "step_s": 0.5, "workers": [{"name": "a", **used}]},
        {"event": "left", "name": "b", "reason": lost},
        {"event": "phase", "phase": "planning", "reason": lost, "step": 2},
        plan(2, ("a",)),
    ):
        board.take(event, 0.0)
    found = board.snapshot()
    assert (found["plans"][-1]["why"], found["plans"][-1]["step"]) == (lost, 2)
    assert found["recorded_step"] == 0, "what was recorded was of another plan"
    worker = next(w for w in found["workers"] if w["name"] == "a")
    assert (worker["busy"], worker["memory_used_bytes"]) == (0.6, 7)
    board.take({"event": "recovery", "step": 2, "reason": "a has all layers", "way": "repair"}, 0.0)
    assert board.snapshot()["plans"][-1]["why"] == "goes on after step 2: a has all layers"


def test_measured_links_are_told_by_region_and_again_when_they_are_measured_again(
    client: TestClient, tmp_path: Path
) -> None:
    devices = (Device("a", region="Oregon"), Device("b", region="Tokyo"), Device("x", region="Ohio"))
    for at_s, latency_s in ((1000.0, 0.05), (1090.0, 0.08)):
        links = tuple(
            (s.name, LinkSample(d.name, latency_s, 1e8)) for s in devices for d in devices if s != d
        )
        LinksFile(tmp_path).record(MakePlan(1, ModelProfile((), 1, 1), devices, (), links), at_s)
        found = {(x["from"], x["to"]): (x["links"], x["latency_s"]) for x in client.get("/api/links").json()}
        assert found == {("Oregon", "Tokyo"): (1, latency_s), ("Tokyo", "Oregon"): (1, latency_s)}


def test_points_are_thinned_to_the_limit_and_end_with_the_last_step() -> None:
    board = board_of(LISTENING, *(step(n) for n in range(1, 1001)))
    steps = board.points(-1, 50)["series"]["step"]
    assert len(steps) == 50
    assert steps[-1] == 1000
    assert board.points(999, 50)["series"]["step"] == [1000]


def test_who_leaves_after_the_end_is_not_lost(board: Board) -> None:
    board.take({"event": "finished", "code": 0, "reason": "done"}, 0.0)
    board.take({"event": "left", "name": "a", "reason": "a has left: the run is over"}, 0.0)
    found = board.snapshot()
    assert next(w for w in found["workers"] if w["name"] == "a")["state"] == "member"
    assert not found["events"][-1]["bad"]


@pytest.fixture
def client(board: Board, tmp_path: Path) -> TestClient:
    return TestClient(Dashboard(board, tmp_path).app)


@pytest.mark.parametrize("path", sorted(set(DOCUMENT["paths"]) - {"/api/compare"}))
def test_answers_are_as_documented(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    jsonschema.validate(answer.json(), answered(path))


def test_metrics_parse_and_say_the_numbers(client: TestClient) -> None:
    families = text_string_to_metric_families(client.get("/metrics").text)  # type: ignore[no-untyped-call]
    found = {
        (s.name, s.labels.get("from"), s.labels.get("region")): s.value
        for family in families
        for s in family.samples
    }
    assert found["isthmus_loss", None, None] == 1.5
    assert found["isthmus_held_out_loss", None, None] == 1.7
    assert found["isthmus_tokens_total", None, None] == 128
    assert found["isthmus_workers", None, "Oregon"] == 1
    assert found["isthmus_link_bytes", "Oregon", None] == 7


def test_the_page_and_its_parts_come_from_here_alone(client: TestClient) -> None:
    page = client.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    texts = [page.text, *(client.get(f"/static/{path.name}").text for path in STATIC.iterdir())]
    assert len(texts) > 8
    for text in texts[:1] + [path.read_text() for path in STATIC.glob("*.css") if path.name == "app.css"]:
        assert "http://" not in text
        assert "https://" not in text


def test_it_only_reads(client: TestClient) -> None:
    assert client.post("/api/run").status_code == 405
    assert client.get("/api/steps?after=x").status_code == 400

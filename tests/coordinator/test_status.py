"""`status --watch` draws what it is told, over the last picture on a terminal, until the run is over."""

from __future__ import annotations

import json
from io import StringIO

import pytest
from rich.console import Console

from coordinator.client import status_json
from coordinator.status import MOST_WORKERS, lines_of, watch
from protos import orchestrator_pb2 as pb


def worker(
    name: str, rank: int = -1, state: str = "connected", reason: str = "", region: str = "Oregon"
) -> pb.WorkerStatus:
    return pb.WorkerStatus(
        name=name, state=state, rank=rank, first_layer=0, last_layer=2, last_seen_s=0.4, reason=reason,
        device=pb.DeviceInfo(region=region, memory_bytes=8 * 10**9),
    )  # fmt: skip


def reply(phase: str, step: int, *workers: pb.WorkerStatus) -> pb.StatusReply:
    return pb.StatusReply(
        run="r-1", phase=phase, reason="to step 9", step=step, steps=9, loss=2.5, tokens_per_s=1234.0,
        measured_step_s=0.5, predicted_step_s=0.4, workers=workers,
    )  # fmt: skip


def watched(*replies: pb.StatusReply, terminal: bool) -> tuple[str, int]:
    """What was written, and how often it paused."""
    left, pauses = list(replies), []
    out = StringIO()
    console = Console(file=out, force_terminal=terminal, width=110, height=30, color_system=None)
    last = watch(lambda: left.pop(0), console, lambda: pauses.append(1))
    assert not left
    assert last.phase == replies[-1].phase
    return out.getvalue(), len(pauses)


@pytest.mark.parametrize("terminal", [True, False])
def test_it_draws_until_the_run_is_over(terminal: bool) -> None:
    lost = worker("b", state="gone", reason="b is lost: no heartbeat")
    text, pauses = watched(
        reply("running", 3, worker("a", 0), worker("b", 1)),
        reply("running", 5, worker("a", 0), lost),
        reply("finished", 9, worker("a", 0), lost),
        terminal=terminal,
    )
    assert pauses == 2
    assert [f"step {n} of 9" in text for n in (3, 5, 9)] == [True] * 3
    assert "rank 1, layers 0..2" in text
    assert "b is lost: no heartbeat" in text
    assert ("\x1b[?1049h" in text) is terminal, "a terminal gets a screen of its own"


def test_a_run_that_is_over_is_drawn_once() -> None:
    text, pauses = watched(reply("failed", 4), terminal=False)
    assert (text.count("step 4 of 9"), pauses) == (1, 0)


def test_many_workers_are_counted_by_region() -> None:
    many = [worker(f"w{i}", i, region=("Tokyo", "Ohio")[i % 2]) for i in range(MOST_WORKERS)]
    text, _ = watched(
        reply("finished", 9, *many, worker("last", state="gone", region="Ohio")), terminal=False
    )
    assert "w7" not in text
    [ohio] = [line.split() for line in text.splitlines() if "Ohio" in line]
    assert [x for x in ohio if x.isdecimal()] == [str(MOST_WORKERS // 2), "0", "1"]


def test_lines_say_why_a_worker_is_gone_or_when_it_was_heard_of() -> None:
    lines = list(
        lines_of(reply("running", 3, worker("a", 0), worker("b", state="gone", reason="b has left")))
    )
    assert lines[0] == "run r-1: running (to step 9)"
    assert lines[2:] == [
        "  a: connected, rank 0, layers 0..2, 8.0 GB: heard of 0.4 s ago",
        "  b: gone, no layers, 8.0 GB: b has left",
    ]


def test_before_the_first_step_there_is_no_loss() -> None:
    first = pb.StatusReply(run="r-1", phase="gathering", reason="have 0 of 2 workers", steps=9)
    assert list(lines_of(first))[1] == "step 0 of 9, none is done yet"
    said = json.loads(status_json(first))
    assert (said["step"], said["steps"]) == (0, 9)
    unknown = ("loss", "eval_loss", "tokens_per_s", "predicted_step_s", "measured_step_s", "plan")
    assert {key: said[key] for key in unknown} == dict.fromkeys(unknown)


def test_numbers_are_said_as_they_come_to_be_known() -> None:
    planned = pb.StatusReply(run="r-1", phase="running", steps=9, predicted_step_s=0.4)
    assert list(lines_of(planned))[1] == "step 0 of 9, none is done yet, step predicted 0.4 s"
    resumed = pb.StatusReply(run="r-1", phase="gathering", step=4, steps=9, loss=2.5, eval_loss=2.75)
    assert list(lines_of(resumed))[1] == "step 4 of 9, loss 2.5000, eval loss 2.7500"
    assert json.loads(status_json(resumed))["eval_loss"] == 2.75
    running = list(lines_of(reply("running", 3)))[1]
    assert running == "step 3 of 9, loss 2.5000, 1,234 tokens/s, step 0.5 s (predicted 0.4 s)"

"""One who joins over a slow link gets its layers while the steps go on, and the run's numbers are those of
one process, bit for bit; also if it dies while it gets them."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.history import read_history
from tests.joined import LATE, Event, checkpoint, first, job_of, losses, run_of, worker_events
from tests.survival import left_over

JOB = job_of(layers=6, global_batch=16, steps=400)
"""Far more steps than any of the runs does."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("joined")


@pytest.fixture(scope="module")
def joined(directory: Path) -> list[Event]:
    """Until some steps after it was taken in."""
    return run_of(directory / "joined", JOB, joins=True, ends_after="pause")


def test_layers_travel_while_steps_go_on(directory: Path, joined: list[Event]) -> None:
    begins, pause = first(joined, "following"), first(joined, "pause")
    assert begins["followers"] == [LATE]
    assert pause["step"] >= begins["step"] + 1, "steps went on meanwhile"
    assert pause["followed"] == 3, "all the layers of the newcomer's stage came beside the steps"
    recovery = first(joined, "recovery")
    assert (recovery["way"], recovery["step"], recovery["loading_s"]) == ("move", pause["step"], 0.0)
    assert "unfollowed" not in {e["event"] for e in joined}
    layers = [e for e in worker_events(directory / "joined", LATE) if e["event"] == "layers"]
    assert [(e["kept"], e["from_peers"]) for e in layers] == [(3, 0)]
    plan = read_history(directory / "joined" / "state").plan
    assert plan is not None
    assert LATE in plan.devices
    assert left_over(directory) == []


@pytest.fixture(scope="module")
def alone(directory: Path, joined: list[Event]) -> list[Event]:
    """As many steps of one process."""
    return run_of(directory / "alone", JOB, joins=False, steps=len(losses(joined)))


def test_every_bit_is_that_of_one_process(directory: Path, joined: list[Event], alone: list[Event]) -> None:
    assert losses(joined) == losses(alone)
    step = len(losses(joined))
    assert step > first(joined, "pause")["step"]
    assert checkpoint(directory / "joined", step) == checkpoint(directory / "alone", step)


def test_a_newcomer_that_dies_while_it_gets_its_layers_costs_nothing(
    directory: Path, alone: list[Event]
) -> None:
    events = run_of(directory / "killed", JOB, joins=True, kill_at="following", ends_after="unfollowed")
    assert "late is lost" in first(events, "unfollowed")["reason"]
    assert [e for e in events if e["event"] in ("pause", "recovery")] == [], "the plan went on"
    both = list(zip(losses(events), losses(alone), strict=False))
    assert len(both) > 3
    assert all(a == b for a, b in both), "to the last bit"
    assert left_over(directory) == []

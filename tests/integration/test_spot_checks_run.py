"""A worker that lies is found by a spot check, and the run ends with the bits of one without it."""

from __future__ import annotations

from itertools import count
from pathlib import Path

from coordinator.resume import CHECK_KEY_FILE
from deploy.processes import Event
from scheduler.departures import Departure
from scheduler.exit_codes import ExitCode
from scheduler.plan import Plan
from scheduler.spot_checks import draw
from tests.survival import cluster_of, fail_at, ledger_defect, left_over, steps_of, weights

STEPS, LIES_AT = 8, 3
LIAR, CHECKER = 0, 2
"""Ranks: the two replicas of the first stage."""


def a_key() -> bytes:
    """One by which the liar is checked in the step in which it begins to lie."""
    plan = Plan(1, (("w0", "w1"), ("w2", "w3")), ((0, 2), (2, 4)), (2, 2), "1f1b", micro_batch=2)
    for i in count():
        key = i.to_bytes(32, "big")
        check = draw(plan, LIES_AT, 1, key)
        if check is not None and (check.checked(plan), check.checkers) == (LIAR, (CHECKER,)):
            return key
    raise AssertionError


def run(directory: Path, name: str, spares: int = 0, **more: object) -> list[Event]:
    with cluster_of(directory, name, 2, STEPS, spares, **more) as cluster:  # type: ignore[arg-type]
        events = list(cluster.events())
        assert cluster.wait() == ExitCode.OK, events[-1]
    return events


def test_the_liar_goes_and_the_weights_are_those_of_an_honest_run(tmp_path: Path) -> None:
    undisturbed = run(tmp_path, "undisturbed")
    (tmp_path / "checked").mkdir()
    (tmp_path / "checked" / CHECK_KEY_FILE).write_bytes(a_key())
    lie = {"w0": fail_at(f"*:{LIAR}:forward@{LIES_AT}:lie=3600")}
    events = run(tmp_path, "checked", 1, options_of=lie, more_job="checks: {every: 1}")
    (said,) = [e for e in events if e["event"] == "disagreement"]
    assert (said["step"], said["stage"], said["name"], said["verdict"]) == (LIES_AT, 0, "w0", "suspected")
    assert said["errors"]["w2"] > 0.04
    gone = next(e for e in events if e["event"] == "left")
    assert (gone["name"], gone["departure"]) == ("w0", Departure.DISAGREED)
    agreed = [e for e in events if e["event"] == "check"]
    assert len(agreed) >= STEPS - 3, "but the first of each plan, and the one with the lie"
    assert all(e["verdict"] == "agree" and max(e["errors"].values()) == 0.0 for e in agreed)
    plans = [e for e in events if e["event"] == "plan"]
    assert any("one micro-batch of one stage is computed again elsewhere" in r for r in plans[0]["reasons"])
    assert steps_of(events) == list(range(1, STEPS + 1)), "the step with the lie was not committed"
    losses = [[e["loss"] for e in run if e["event"] == "step"] for run in (events, undisturbed)]
    assert losses[0] == losses[1]
    assert weights(tmp_path, "checked", STEPS) == weights(tmp_path, "undisturbed", STEPS)
    assert ledger_defect(tmp_path, "checked", STEPS) == ""
    assert left_over(tmp_path) == []

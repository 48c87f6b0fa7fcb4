"""Spot checks in a run: who is told, what a disagreement costs whom; without a liar nothing changes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coordinator import commands as c
from coordinator import events as e
from scheduler.bad_numbers import STRIKES, Conduct
from scheduler.departures import Departure
from scheduler.exit_codes import ExitCode
from scheduler.spot_checks import draw

from .world import World, at_step, running, with_options

KEY = b"key"
STEPS = 60


class Checked(World):
    """Workers that check what they are told to. `liar` computes wrongly, or finds everybody off."""

    liar = ""
    accuses = False

    def a_step(self, worker: str, step: int, version: int | None = None) -> e.StepVote:
        vote = super().a_step(worker, step, version)
        check, plan = self.state.check, self.state.plan
        if check is None or plan is None or check.step != step:
            return vote
        if worker not in [plan.device(r) for r in check.checkers]:
            return vote
        checked = plan.device(check.checked(plan))
        off = worker == self.liar if self.accuses else self.liar in (worker, checked)
        return replace(vote, check_error=0.5 if off else 1e-7)


def a_run(replicas: int, spares: int = 0, every: int = 1, least: int = 4) -> Checked:
    options = with_options(
        steps=STEPS, min_workers=2 * replicas, checks_every=every, check_key=KEY, eval_every=0, save_every=0
    )
    w = Checked(options, replicas=replicas, least=least)
    running(w, *(f"w{i}" for i in range(2 * replicas)))
    w.join(*(f"spare{i}" for i in range(spares)))
    return w


def records(w: World) -> list[c.RecordCheck]:
    return [x for x in w.given if isinstance(x, c.RecordCheck)]


def gone(w: World) -> list[tuple[str, Departure]]:
    """Who was sent away while the run went on."""
    return [(x.worker, x.code) for x in w.given if isinstance(x, c.Evict) and x.code != Departure.RELEASED]


@pytest.mark.parametrize("every", [0, 1, 3])
def test_without_a_liar_a_run_is_as_without_checks(every: int) -> None:
    w = a_run(2, every=every)
    w.settle()
    assert (w.phase, w.state.code) == ("finished", ExitCode.OK)
    assert [s.step for s in w.steps()] == list(range(STEPS))
    checked = [r.check.step for r in records(w)]
    assert checked == ([s for s in range(1, STEPS) if s % every == 0] if every else [])
    assert {r.verdict for r in records(w)} <= {"agree"}
    assert gone(w) == []
    assert w.state.plan_version == 1
    assert ("computed again" in w.state.checked) == bool(every)


def test_only_who_has_a_part_is_told_and_it_is_told_with_the_commit_before() -> None:
    w = a_run(2)
    w.settle()
    plan = w.state.plan
    assert plan is not None
    for rank, name in enumerate(plan.devices):
        told = {x.step + 1: x.check for x in w.orders(name) if isinstance(x, c.Commit) and x.check}
        drawn = {s: d for s in range(1, STEPS) if (d := draw(plan, s, 1, KEY)) and rank in d.told(plan)}
        assert told == drawn


@pytest.mark.parametrize("before", range(STRIKES))
def test_of_several_replicas_the_liar_is_found_and_stays_out_after_the_usual_number_of_times(
    before: int,
) -> None:
    w = a_run(4)
    w.state = replace(w.state, conduct=Conduct({"w2": tuple(range(-before, 0))}))
    w.liar = "w2"
    w.settle()
    found = next(r for r in records(w) if r.verdict != "agree")
    assert found.verdict == "at fault"
    assert "w2" in (found.worker, *found.errors)
    last = before + 1 == STRIKES
    assert gone(w) == [("w2", Departure.QUARANTINED if last else Departure.DISAGREED)]
    assert w.state.quarantined == ({"w2"} if last else set())
    assert [s.step for s in w.steps()] == list(range(STEPS))


def test_of_several_a_checker_that_accuses_is_found_too() -> None:
    w = a_run(4)
    w.liar, w.accuses = "w3", True
    w.settle()
    assert [x for x, _ in gone(w)] == ["w3"]
    assert "is alone with it" in next(r.reason for r in records(w) if r.verdict == "at fault")
    assert [s.step for s in w.steps()] == list(range(STEPS))


def test_of_two_one_goes_without_a_strike_and_the_next_partner_tells() -> None:
    w = a_run(2, spares=2)
    while len(w.state.known) < 6:  # all obey in turn, so that spares are measured beside the steps
        for name in list(w.state.members):
            if w.waiting[name]:
                w.answer(name)
    w.liar = "w0"
    w.settle()
    assert (w.phase, [s.step for s in w.steps()]) == ("finished", list(range(STEPS)))
    said = [r for r in records(w) if r.verdict != "agree"]
    assert said[0].verdict == "suspected"
    names = [x for x, _ in gone(w)]
    assert "w0" in names, "sooner or later it is the one that is found"
    assert len(names) <= 3
    honest = [x for x in names if x != "w0"]
    assert not set(honest) & set(w.state.conduct.faults), "it is not held against who was only suspected"
    assert all(code is Departure.DISAGREED for _, code in gone(w))


def test_a_checker_that_says_nothing_of_it_has_checked_nothing() -> None:
    w = a_run(2)
    w.settle(until="running")
    for _ in range(3):
        step = w.state.done
        for name in w.state.ranks:
            w.feed(World.a_step(w, name, step))
    assert w.state.done >= 3
    assert records(w) == []


def test_a_disagreement_is_of_a_step_that_does_not_count() -> None:
    w = a_run(2, spares=1)
    at_step(w, 4)
    w.liar = "w1"
    w.settle()
    off = next(r for r in records(w) if r.verdict != "agree")
    committed = [x.step for x in w.given if isinstance(x, c.RecordStep)]
    assert committed.count(off.check.step) == 1, "the first time it was forgotten"
    assert not w.of(c.Rewind)

"""Workers that are told to go, and those that stand by: each history by hand."""

from __future__ import annotations

import pytest

from coordinator import commands as c
from coordinator import events as e
from scheduler.departures import Departure, Gone
from scheduler.exit_codes import ExitCode

from .world import World, at_step, running, with_options


@pytest.mark.parametrize("phase", ["running", "evaluating", "saving"])
def test_a_worker_that_leaves_finishes_its_steps_and_hands_its_layers_over(phase: str) -> None:
    w = World(least=2)
    w.join("a", "b")
    w.settle(until="running")
    w.join("c")
    w.settle(until=phase)
    granted = w.state.granted
    w.feed(e.Leaving("b", "its machine is taken back"))
    assert not [x for x in w.orders("b") if isinstance(x, c.AbortPlan | c.Stop)]
    w.settle()
    assert (w.phase, w.state.code) == ("finished", ExitCode.OK)
    assert not w.of(c.Rewind)
    assert [s.step for s in w.steps()] == list(range(12))
    assert w.state.departed["b"] == Gone(Departure.LEFT, "b is lost: it left (its machine is taken back)")
    assert w.orders("b")[-1] == c.Stop(ExitCode.OK, "it left, its layers are handed over")
    take = next(x for x in w.orders("b")[::-1] if isinstance(x, c.TakePlan))
    assert take.guests == ("b",)
    assert [p.to for p in take.serves] == ["c"] * len(take.serves)
    assert take.step >= granted


def test_all_who_leave_at_once_save_first_and_others_go_on_from_there() -> None:
    w = at_step(running(World(least=2)), 2)
    for name in ("a", "b"):
        w.feed(e.Leaving(name, "its machine is taken back"))
    w.settle()
    assert w.phase == "gathering"
    assert not w.state.members
    assert w.state.saved_at == w.state.done > 0
    assert w.orders("a")[-1] == c.Stop(ExitCode.OK, "it left, with all the others")
    done = w.state.done
    w.join("c", "d")
    w.settle()
    assert (w.phase, w.state.code) == ("finished", ExitCode.OK)
    assert [s.step for s in w.steps()] == list(range(12)), f"nothing is done twice from step {done} on"


def test_a_run_that_all_have_left_is_drained_at_once() -> None:
    w = at_step(running(World(least=2)), 2)
    for name in ("a", "b"):
        w.feed(e.Leaving(name, "asked to"))
    w.settle()
    w.feed(e.Drain("asked to"))
    assert (w.phase, w.state.code) == ("finished", ExitCode.OK)
    assert f"step {w.state.done} is saved" in w.state.reason


def test_the_last_who_stays_may_leave_while_the_others_hand_over() -> None:
    w = at_step(running(World(least=1)), 2)
    w.feed(e.Leaving("a", "asked to"))
    w.settle(until="planning")
    w.feed(e.Leaving("b", "asked to"))
    w.settle()
    assert w.phase == "gathering"
    assert not w.state.members
    w.join("c", "d")
    w.settle()
    assert (w.phase, w.state.code) == ("finished", ExitCode.OK)


def test_who_stands_by_is_profiled_and_measured_beside_the_run() -> None:
    w = at_step(running(World(least=2)), 1)
    w.join("c")
    assert w.phase == "running"
    w.settle(until="finished")
    asked = [type(x) for x in w.orders("c")]
    assert asked == [c.Profile, c.MeasureLinks, c.MeasureLinks, c.Stop]
    assert {pair for pair in w.state.links if "c" in pair} == {("c", "a"), ("c", "b"), ("a", "c"), ("b", "c")}


def test_who_joins_while_the_first_plan_is_made_is_profiled_and_measured_too() -> None:
    w = World(with_options(min_workers=2))
    w.join("a", "b")
    w.settle(until="planning")
    w.join("c")
    assert not w.orders("c")
    w.settle(until="finished")
    assert set(w.state.known) == set("abc")
    assert [x.version for x in w.given if isinstance(x, c.MakePlan)] == [1]


def test_a_spare_that_is_lost_while_it_is_profiled_keeps_no_other_waiting() -> None:
    w = running(World(least=2))
    w.join("c", "d")
    assert (w.orders("c"), w.orders("d")) == ([c.Profile()], [])
    w.feed(e.Disconnected("c", "reset"))
    assert w.orders("d") == [c.Profile()]
    w.settle(until="finished")
    assert set(w.state.known) == set("abd")


def test_who_stands_by_and_cannot_be_reached_is_sent_away_and_the_run_goes_on() -> None:
    w = at_step(running(World(least=2)), 1)
    w.join("c")
    w.answer("c")
    w.feed(e.LinksMeasured("a", (e.LinkSample("c", 0, 0, "c:1 does not answer"),)))
    assert w.orders("c")[-1] == c.Stop(ExitCode.PEER_UNREACHABLE, "a -> c: c:1 does not answer")
    w.settle()
    assert (w.phase, w.state.code) == ("finished", ExitCode.OK)


def test_a_spare_that_leaves_is_released_at_once() -> None:
    w = running()
    w.join("c")
    w.feed(e.Leaving("c", "asked to"))
    assert w.orders("c") == [c.Profile(), c.Stop(ExitCode.OK, "it left, as it was told to")]
    w.settle()
    assert w.phase == "finished"


def test_without_anybody_to_take_over_a_worker_that_leaves_waits_as_long_as_the_run_does() -> None:
    w = running(World(with_options(regather_s=5.0), least=2))
    w.feed(e.Leaving("b", "asked to"))
    w.settle()
    assert w.phase == "gathering"
    assert "b" in w.state.members
    w.join("c")
    w.settle()
    assert (w.phase, w.state.code) == ("finished", ExitCode.OK)
    assert not w.of(c.Rewind)

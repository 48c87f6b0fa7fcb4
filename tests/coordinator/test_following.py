"""Layers that travel while steps go on: taken in with what was followed, or as if nothing had been tried."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coordinator import commands as c
from coordinator import events as e
from coordinator.following import LEAST_MEETING_S
from coordinator.telling import changes
from scheduler.exit_codes import ExitCode
from scheduler.observed import Factors

from .test_reconsidering import pass_time
from .world import World, with_options

STEPS = 40


def joined(replicas: int = 1, *names: str, **options: object) -> World:
    """A run of a and b that c (and d) stands by, known, and a look that is to be answered."""
    w = World(with_options(steps=STEPS, eval_every=0, save_every=0, **options), replicas=replicas)
    w.join("a", "b")
    w.settle(until="running")
    late = names or (("c",) if replicas == 1 else ("c", "d"))
    w.join(*late)
    while w.state.known != ("a", "b", *late):
        w.answer(next(n for n in (*late, "a", "b") if w.waiting[n]))
    pass_time(w, Factors())
    return w


def following(w: World) -> World:
    w.reconsider(follows=True)
    assert w.state.ahead is not None
    return w


def in_turn(w: World, until: str) -> None:
    """All who have something to obey do so in turn, until the phase, or until it is said where they meet."""
    for _ in range(10_000):
        meets = w.state.ahead is not None and w.state.ahead.meeting > 0
        if w.phase == until or (until == "meeting" and meets):
            return
        busy = [n for n, q in w.waiting.items() if q]
        for name in busy:
            if w.waiting[name]:
                w.answer(name)
        if not busy and not w.answer_shell():
            break
    raise AssertionError(f"never {until}; {w.phase}: {w.state.reason}")


def of(w: World, worker: str, kind: type[c.WorkerCommand]) -> list[c.WorkerCommand]:
    return [x for x in w.orders(worker) if isinstance(x, kind)]


def last_plan(w: World, worker: str) -> c.TakePlan:
    return [x for x in w.orders(worker) if isinstance(x, c.TakePlan)][-1]


def ends_well(w: World) -> None:
    w.settle()
    assert (w.phase, w.state.code) == ("finished", ExitCode.OK)
    assert [s.step for s in w.steps()] == list(range(STEPS))
    assert w.of(c.Rewind) == []
    assert w.shadows.follow == {}, "nobody gives or follows any more"


def donors_of(w: World, worker: str) -> set[str]:
    return {d for s in last_plan(w, worker).sources for d in s.donors}


@pytest.mark.parametrize("replicas", [1, 2])
def test_steps_go_on_while_layers_travel_and_no_layer_travels_when_the_plan_is_taken(replicas: int) -> None:
    w = following(joined(replicas))
    ahead = w.state.ahead
    assert ahead is not None
    assert w.phase == "running"
    in_turn(w, until="loading")
    assert w.state.done >= ahead.began + 1, "steps were committed meanwhile"
    assert set(w.state.ranks) == {"a", "b", *ahead.following.followers}
    for name in w.state.ranks:
        assert donors_of(w, name) == {name}, "each has what it needs"
        assert last_plan(w, name).loading_s == 0.0
    ends_well(w)


def test_bits_that_differ_are_not_taken_for_the_donors() -> None:
    w = joined()
    w.shadows.spoiled = {"c"}
    in_turn(following(w), until="loading")
    assert donors_of(w, "c") == {"b"}
    assert "differ from their donors'" in w.state.reason
    ends_well(w)


def test_who_has_loaded_and_loses_another_keeps_what_it_followed() -> None:
    w = following(joined())
    in_turn(w, until="loading")
    w.feed(e.Disconnected("a", "reset"))
    w.settle()
    assert w.phase in ("gathering", "finished")


@pytest.mark.parametrize("who", ["a", "b", "c"])
@pytest.mark.parametrize("when", ["at once", "before they meet", "while the plan is made"])
def test_whoever_is_lost_meanwhile_the_run_goes_on_without(who: str, when: str) -> None:
    w = joined(2, "c", "d")
    following(w)
    if when == "before they meet":
        in_turn(w, until="meeting")
    elif when == "while the plan is made":
        in_turn(w, until="planning")
    version = w.state.plan_version
    w.feed(e.Disconnected(who, "reset"))
    if when != "while the plan is made":
        assert w.state.ahead is None
    assert w.state.plan_version >= version
    ends_well(w)


@pytest.mark.parametrize("worker", ["b", "c"])
def test_a_following_that_fails_leaves_the_layers_to_the_boundary(worker: str) -> None:
    w = following(joined())
    assert w.state.ahead is not None
    w.feed(e.Followed(worker, w.state.ahead.version, 0, "FellBehind: 9 bytes wait"))
    assert w.state.ahead is None
    assert w.state.outlook.chosen is not None
    assert "FellBehind" in w.state.outlook.reason
    assert of(w, "b", c.Unfollow)
    assert of(w, "c", c.Unfollow)
    in_turn(w, until="loading")
    assert donors_of(w, "c") == {"b"}
    ends_well(w)


def pass_s(w: World, seconds: float) -> None:
    """Heartbeats come, time passes."""
    for _ in range(10):
        w.now += seconds / 10
        for name in w.state.members:
            w.feed(e.Heartbeat(name))
        w.feed(e.Tick())


def test_a_following_that_does_not_come_to_an_end_is_given_up() -> None:
    w = joined()
    w.shadows.slow = {"c"}
    following(w)
    pass_s(w, 50.0)
    assert w.state.ahead is not None
    pass_s(w, 50.0)
    assert w.state.ahead is None
    assert "were not there after" in w.state.outlook.reason
    in_turn(w, until="loading")
    assert donors_of(w, "c") == {"b"}
    ends_well(w)


def test_the_run_does_not_stand_still_for_ever_for_last_steps_that_do_not_come() -> None:
    w = following(joined())
    in_turn(w, until="meeting")
    w.waiting["c"].clear()  # it does not hear where to meet
    w.settle()
    assert w.state.ahead is not None
    assert w.state.done == w.state.granted == w.state.ahead.meeting
    assert "last steps of c" in w.state.reason
    pass_s(w, LEAST_MEETING_S + 2)
    in_turn(w, until="loading")
    assert donors_of(w, "c") == {"b"}
    ends_well(w)


def test_one_word_of_two_does_not_do() -> None:
    """Who gives and follows says what it has in two words."""
    w = following(joined())
    in_turn(w, until="meeting")
    ahead = w.state.ahead
    assert ahead is not None
    w.feed(e.Met("b", ahead.version, ahead.meeting, {}))
    w.feed(e.Met("c", ahead.version, ahead.meeting - 1, {}))
    w.feed(e.Met("c", ahead.version - 1, ahead.meeting, {}))
    w.feed(e.Met("a", ahead.version, ahead.meeting, {}))
    assert w.phase == "running"
    ends_well(w)


@pytest.mark.parametrize("end", ["drain", "leave"])
def test_a_run_that_is_to_end_or_somebody_who_is_to_leave_ends_the_following(end: str) -> None:
    w = following(joined())
    if end == "drain":
        w.feed(e.Drain("asked to"))
        w.settle()
        assert (w.phase, w.state.code) == ("finished", ExitCode.OK)
        return
    w.feed(e.Leaving("b", "asked to"))
    in_turn(w, until="planning")
    assert w.state.ahead is None
    ends_well(w)


def test_what_comes_too_late_is_ignored() -> None:
    w = joined()
    w.reconsider(moves=False)
    w.feed(e.Followed("c", 1, 3))
    w.feed(e.Met("c", 1, 3, {}))
    assert w.state.ahead is None
    ends_well(w)


def test_no_look_is_taken_while_layers_travel_and_numbers_rise() -> None:
    w = following(joined())
    assert w.state.ahead is not None
    first = w.state.ahead.version
    pass_time(w, Factors({"a": 1.0, "b": 4.0}))
    assert w.look is None
    w.feed(e.Followed("c", first, 0, "broken"))
    in_turn(w, until="loading")
    in_turn(w, until="running")
    later = replace(w.state, follows=0)
    assert later.plan is not None
    assert later.plan.version * (1 << 16) > first


def test_what_is_told() -> None:
    w = joined()
    before = w.state
    following(w)
    told = dict(changes(before, w.state, e.Tick(), "it is faster"))
    assert told["following"]["followers"] == ["b", "c"]
    assert w.state.ahead is not None
    assert "c begins" in w.state.ahead.words
    before = w.state
    w.feed(e.Followed("c", w.state.ahead.version, 0, "broken"))
    (kind, fields) = next(iter(changes(before, w.state, e.Tick(), w.reasons[-1])))
    assert (kind, "broken" in fields["reason"]) == ("unfollowed", True)

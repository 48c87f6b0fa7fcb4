"""A link that is dead while both its ends live: it is planned around, or one of its ends is done without."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coordinator import commands as c
from coordinator import events as e
from coordinator.planning import make
from coordinator.prepare import request_for
from scheduler.dead_links import DEAD_AFTER, pairs_used, who_goes
from scheduler.departures import Departure, Gone
from scheduler.exit_codes import ExitCode
from scheduler.plan import Plan

from .job import a_job
from .world import World, at_step, line_plan, running, with_options

A_B = frozenset("ab")


def cut(worker: str, peer: str) -> e.Failed:
    reason = f"the link to {peer} is cut"
    return e.Failed(worker, ExitCode.PEER_UNREACHABLE, reason, fatal=False, peer=peer)


def two_and_a_spare() -> World:
    w = running(World(with_options(steps=60, save_every=0), least=2))
    w.join("c")
    while len(w.state.known) < 3:
        for name in list(w.state.members):
            if w.waiting[name]:
                w.answer(name)
    return w


def killed(w: World, times: int = DEAD_AFTER) -> None:
    """The link between a and b is cut so often in one step; either end may tell."""
    for i in range(times):
        w.settle(until="running")
        w.feed(cut("a", "b") if i % 2 else cut("b", "a"))


def test_a_dead_link_is_said_and_priced_so_that_nobody_takes_it() -> None:
    w = two_and_a_spare()
    killed(w, DEAD_AFTER - 1)
    assert w.state.dead == frozenset()
    w.settle(until="running")
    w.feed(cut("a", "b"))
    assert w.state.dead == {A_B}
    assert "3 times in one step: it is taken for dead, and planned around" in w.state.interrupted
    assert "it is taken for dead" in w.reasons[-1], "the warning says so"
    request = w.plan_request
    assert request is not None
    figures = {(src, x.peer): x.latency_s for src, x in request.links}
    assert figures["a", "b"] == figures["b", "a"] > 1000 * figures["a", "c"]


def test_the_run_goes_on_without_one_end_where_no_plan_does_without_the_link() -> None:
    w = at_step(two_and_a_spare(), 30)
    assert w.state.checkpoint is None or w.state.checkpoint.step < 30
    killed(w)
    w.settle()
    assert (w.phase, w.state.code) == ("finished", ExitCode.OK)
    assert [s.step for s in w.steps()] == list(range(60))
    assert not w.of(c.Rewind), "who goes hands its layers over first"
    gone = next((x.worker, x.code, x.reason) for x in w.given if isinstance(x, c.Evict))
    assert gone[:2] == ("b", Departure.FAILED)
    assert "its link to a is dead, and there is no plan without it" in gone[2]
    plan = w.state.plan
    assert plan is not None
    assert set(plan.devices) == {"a", "c"}


def test_two_alone_wait_for_a_third_with_their_layers() -> None:
    w = at_step(running(World(with_options(steps=60, save_every=4), least=1)), 10)
    killed(w)
    w.settle()
    assert w.phase == "gathering"
    w.join("c")
    w.settle()
    assert (w.phase, w.state.code) == ("finished", ExitCode.OK)
    assert not w.of(c.Rewind)
    assert [s.step for s in w.steps()] == list(range(60))


def test_who_has_no_layers_to_hand_over_goes_at_once() -> None:
    w = two_and_a_spare()
    killed(w)
    w.state = replace(w.state, leaving={"b": Gone(Departure.LEFT, "told to")})
    plan = line_plan(w.state.plan_version, ["a", "b"])
    w.feed(e.Planned(plan))
    assert "b" not in w.state.members


def test_the_planner_goes_around_it() -> None:
    w = running(World(with_options(min_workers=4), replicas=2, least=4), "a", "b", "c", "d")
    killed(w)
    planning = make(a_job(parallelism="{stages: 2, replicas: 2}"), request_for(w.state, w.state.known))
    assert A_B not in pairs_used(planning.plan, tied=False)
    assert planning.plan.n_ranks == 4, "all four work on"


def test_another_step_begins_the_count_anew() -> None:
    w = two_and_a_spare()
    for _ in range(2 * DEAD_AFTER):
        killed(w, DEAD_AFTER - 1)
        step = w.state.done
        while w.state.done == step:
            w.settle(until="running")
            for name in w.state.ranks:
                w.answer(name) if w.waiting[name] else None
    assert w.state.dead == frozenset()
    assert not w.of(c.Evict)


def test_a_link_that_found_the_relay_lives_again() -> None:
    w = two_and_a_spare()
    killed(w)
    w.feed(e.LinksMeasured("a", (e.LinkSample("b", 0.2, 1e6, relayed=True),)))
    assert w.state.dead == frozenset()
    assert {w.state.links[pair].latency_s for pair in (("a", "b"), ("b", "a"))} == {0.2}


def test_who_has_gone_takes_its_dead_links_along() -> None:
    w = two_and_a_spare()
    killed(w)
    w.feed(e.Disconnected("b", "killed"))
    assert w.state.dead == frozenset()


@pytest.mark.parametrize("peer", ["", "nobody", "a"])
def test_a_peer_that_cannot_be_counts_as_before(peer: str) -> None:
    w = two_and_a_spare()
    for _ in range(DEAD_AFTER):
        w.settle(until="running")
        w.feed(e.Failed("a", ExitCode.PEER_UNREACHABLE, "cut", fatal=False, peer=peer))
    assert w.state.dead == frozenset()


# ---- what plans need


def test_pairs_are_those_that_frames_travel_between() -> None:
    plan = Plan(
        1, (("a", "b", "c"), ("d", "e", "f")), ((0, 1), (1, 2), (2, 3)), (1, 1), "1f1b", micro_batch=1
    )

    def pairs(*texts: str) -> set[frozenset[str]]:
        return {frozenset(t) for t in texts}

    plain = pairs("ab", "bc", "de", "ef", "ad", "be", "cf")
    assert pairs_used(plan, tied=False) == plain
    assert pairs_used(plan, tied=True) == plain | pairs("ac", "df")
    assert pairs_used(plan, tied=False, checked=True) == plain | pairs("ae", "bd", "bf", "ce")


def test_of_the_ends_of_dead_links_the_one_with_most_goes() -> None:
    dead = [frozenset("ab"), frozenset("ac"), frozenset("de")]
    assert who_goes([frozenset("ab")], dead) == "a"
    assert who_goes([frozenset("de")], dead) == "e"
    assert who_goes([frozenset("bc")], dead) == ""

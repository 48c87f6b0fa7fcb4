"""Bad numbers in a run: the step is done again without who made them, and who does so too often stays out."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan

import pytest

from coordinator import commands as c
from protos.convert import PeerInfo
from scheduler.bad_numbers import LEAST_HISTORY, STRIKES, Conduct
from scheduler.exit_codes import ExitCode

from .world import World, at_step, running, with_options

ALL = ("a", "b", "c", "d")


def four() -> World:
    """Two stages by two replicas; each plan takes whoever is there."""
    return running(World(with_options(min_workers=4), replicas=2, least=4), *ALL)


def vote_all(w: World, **odd: dict[str, object]) -> None:
    """Every rank votes for the step that is to be done, with a norm of 1 unless told otherwise."""
    step = w.state.done
    for name in w.state.ranks:
        w.feed(replace(w.a_step(name, step), **({"own_square": 1.0} | odd.get(name, {}))))  # type: ignore[arg-type]


def test_the_step_is_done_again_without_the_rank_whose_numbers_are_bad() -> None:
    w = four()
    vote_all(w)
    vote_all(w, c={"own_square": nan, "bad_gradient": True}, d={"own_square": nan, "bad_activation": True})
    assert w.phase == "planning"
    assert [s.step for s in w.steps()] == [0], "what was spoiled is not committed"
    (evicted,) = w.of(c.Evict)
    assert isinstance(evicted, c.Evict)
    assert evicted.worker == "c"
    assert "step 1: rank 2 (stage 0, replica 1) was sent finite numbers and made others" in evicted.reason
    w.settle()
    assert (w.phase, w.state.code) == ("finished", ExitCode.OK)
    assert [s.step for s in w.steps()] == list(range(12)), "every sample once"
    assert not w.of(c.Rewind)


@pytest.mark.parametrize("faults", range(STRIKES))
def test_it_may_come_back_until_it_was_at_fault_too_often(faults: int) -> None:
    w = at_step(four(), 5)
    conduct = Conduct()
    for step in range(faults):
        conduct = conduct.add(("d",), step)
    w.state = replace(w.state, conduct=conduct)
    vote_all(w, d={"own_square": inf})
    assert "d" not in w.state.members
    w.join("d", incarnation="2")
    if faults + 1 < STRIKES:
        assert "d" in w.state.members
        assert not w.of(c.Refuse)
    else:
        (refused,) = w.of(c.Refuse)
        assert isinstance(refused, c.Refuse)
        assert refused.code is ExitCode.QUARANTINED
        assert "d" not in w.state.members
    w.settle()
    assert (w.phase, [s.step for s in w.steps()]) == ("finished", list(range(12)))


def test_quarantine_is_of_the_key_and_not_of_the_name() -> None:
    w = four()
    w.state = replace(w.state, quarantined=frozenset({"k" * 40}))
    join = replace(w.a_join("new"), peer=PeerInfo("new", "h:1", b"k" * 40))
    w.feed(join)
    (refused,) = w.of(c.Refuse)
    assert isinstance(refused, c.Refuse)
    assert refused.code is ExitCode.QUARANTINED
    w.feed(replace(join, peer=PeerInfo("new", "h:1", b"l" * 40)))
    assert "new" in w.state.members


def test_when_all_replicas_have_it_the_run_has_diverged() -> None:
    w = four()
    odd = {n: {"own_square": nan, "squares": (nan,)} for n in ALL}
    vote_all(w, **odd)
    assert (w.phase, w.state.code) == ("failed", ExitCode.DIVERGED)
    assert "every replica has gradients that are not finite" in w.state.reason


@pytest.mark.parametrize("again", ["the same", "as it was before"])
def test_with_one_replica_a_norm_far_off_is_done_again_once_and_then_taken(again: str) -> None:
    w = running(World(with_options(steps=40), least=2))
    while w.state.done <= LEAST_HISTORY:
        w.settle(until="running")
        vote_all(w)
    step = w.state.done
    vote_all(w, a={"own_square": 1e6})
    assert w.phase == "planning"
    assert w.state.done == step
    w.settle(until="running")
    vote_all(w, a={"own_square": 1e6 if again == "the same" else 1.0})
    assert w.state.done == step + 1
    w.settle(until="running")
    vote_all(w, a={"own_square": 1e6})
    assert w.state.done == step + 2 or again != "the same", "numbers that stay so are the run's own"


def test_with_one_replica_a_number_that_is_none_twice_ends_the_run() -> None:
    w = at_step(running(World(least=2)), 2)
    vote_all(w, a={"own_square": nan, "squares": (nan,)})
    w.settle(until="running")
    vote_all(w, a={"own_square": nan, "squares": (nan,)})
    assert (w.phase, w.state.code) == ("failed", ExitCode.DIVERGED)
    assert "rank 0 (stage 0, replica 0) was sent finite numbers and made others" in w.state.reason

"""The coordinator is killed, in each state and at any moment: another goes on from what is written down."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator import commands as c
from coordinator import events as e
from scheduler.exit_codes import ExitCode
from scheduler.samples import Ledger

from .world import World, at_step, running, with_options

NAMES = {1: ("a", "b"), 2: ("a", "b", "c", "d")}


def new_run(replicas: int) -> World:
    options = with_options(min_workers=2 * replicas, await_s=5.0)
    return World(options, replicas=replicas, least=2 * replicas)


def assert_exact(w: World) -> None:
    assert (w.phase, w.state.code) == ("finished", ExitCode.OK)
    assert [s.step for s in w.steps()] == list(range(12))
    ledger = Ledger()
    for s in w.steps():
        ledger = ledger.consume(s.first_sample, s.end_sample)
    assert ledger.ranges == ((0, 96),)


def went_back(w: World) -> list[int]:
    """To which steps a run went back by itself."""
    return [x.step for x in w.given if isinstance(x, c.Rewind) and "started again" not in x.reason]


def in_phase(phase: str, replicas: int) -> World:
    w = new_run(replicas)
    if phase == "gathering":
        w.join("a")
        return w
    if phase in ("running", "draining"):
        w = at_step(running(w, *NAMES[replicas]), 5)
        if phase == "draining":
            w.feed(e.Drain("asked to", False))
        return w
    w.join(*NAMES[replicas])
    w.settle(until=phase)
    return w


PHASES = (
    "gathering", "profiling", "measuring", "planning", "loading", "running", "evaluating", "saving",
    "draining",
)  # fmt: skip


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("phase", PHASES)
def test_killed_in_any_state_it_goes_on_with_whoever_comes_back(phase: str, replicas: int) -> None:
    w = in_phase(phase, replicas)
    assert w.phase == phase
    before = len(w.steps())
    again = w.restarted()
    for name in NAMES[replicas]:
        again.come_back(name)
    again.settle()
    assert_exact(again)
    assert went_back(again) == [], "who is back has its layers"
    told = [x.step for x in again.given if isinstance(x, c.RecordStep)]
    assert told == list(range(12)), f"no step is done twice: {before} were done"


@pytest.mark.parametrize("phase", PHASES)
def test_killed_in_any_state_others_go_on_from_the_last_checkpoint(phase: str) -> None:
    w = in_phase(phase, 1)
    saved = w.state.checkpoint.step if w.state.checkpoint else 0
    again = w.restarted(manifest_arrived=False)
    again.join("x", "y")
    again.settle()
    assert_exact(again)
    assert went_back(again) == ([saved] if len(w.steps()) > saved else [])


@settings(max_examples=40, deadline=None)
@given(
    replicas=st.sampled_from((1, 2)),
    lives=st.lists(st.tuples(st.integers(0, 150), st.booleans(), st.permutations(range(4))), max_size=3),
    data=st.data(),
)
def test_killed_at_any_moment_and_again_no_step_is_lost(
    replicas: int, lives: list[tuple[int, bool, list[int]]], data: st.DataObject
) -> None:
    names = NAMES[replicas]
    w = new_run(replicas)
    w.join(*names)
    for moments, manifest_arrived, order in lives:
        for _ in range(moments):
            busy = sorted(n for n, queue in w.waiting.items() if queue)
            if busy:
                w.answer(data.draw(st.sampled_from(busy)))
            elif not w.answer_shell():
                break
        if w.phase == "finished":
            break
        w = w.restarted(manifest_arrived)
        for i in order[: len(names)] if replicas == 2 else [i for i in order if i < 2]:
            w.come_back(names[i])
    w.settle()
    assert_exact(w)

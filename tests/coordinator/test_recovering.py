"""A worker is lost, silent or cut off, or the coordinator was: each history by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coordinator import commands as c
from coordinator import events as e
from coordinator.records import Restore, TakenUp
from coordinator.state import MAX_CUTS
from scheduler.exit_codes import ExitCode
from scheduler.liveness import Patience

from .world import World, a_file, at_step, line_plan, running, with_options


@pytest.mark.parametrize("phase", ["loading", "running", "evaluating", "saving"])
def test_a_lost_worker_that_nobody_replaces_ends_the_run_naming_it(phase: str) -> None:
    w = World(with_options(regather_s=5.0), least=2)
    w.join("a", "b")
    w.settle(until=phase)
    w.feed(e.Disconnected("b", "reset by peer"))
    assert w.orders("a")[-1] == c.AbortPlan(1, w.state.interrupted), "what waits for it is ended at once"
    w.settle()
    w.feed(e.Tick(), after_s=4.9)
    assert w.phase == "gathering"
    w.feed(e.Tick(), after_s=0.2)
    assert (w.phase, w.state.code) == ("failed", ExitCode.WORKER_LOST)
    assert w.state.reason.startswith("b is lost")
    assert w.orders("a")[-1] == c.Stop(ExitCode.WORKER_LOST, w.state.reason)
    assert w.of(c.Finish) == [c.Finish(ExitCode.WORKER_LOST, w.state.reason)]


def test_the_reason_says_which_checkpoint_can_be_resumed() -> None:
    w = at_step(running(World(with_options(regather_s=0.0), least=2)), 5)
    w.feed(e.Disconnected("b", "reset"))
    w.settle()
    w.feed(e.Tick())
    assert "the checkpoint of step 4 can be resumed" in w.state.reason


@pytest.mark.parametrize("phase", ["running", "evaluating", "saving"])
def test_while_a_replica_lives_the_run_goes_on_from_it_and_nothing_is_done_twice(phase: str) -> None:
    w = running(World(with_options(min_workers=4), replicas=2, least=4), "a", "b", "c", "d")
    w.settle(until=phase)
    done = w.state.done
    w.feed(e.Disconnected("d", "reset"))
    w.settle(until="loading")
    takes = {n: [x for x in w.orders(n) if isinstance(x, c.TakePlan)][-1] for n in "ab"}
    assert all(t.step == done and t.restore_step is None for t in takes.values())
    assert [s.donors for t in takes.values() for s in t.sources] == [("a",)] * 2 + [("b",)] * 2
    w.settle()
    assert (w.phase, w.state.code) == ("finished", ExitCode.OK)
    assert not w.of(c.Rewind)
    assert [s.step for s in w.steps()] == list(range(12))
    assert {s.plan_version for s in w.steps()} >= {2}
    assert {n: w.has[n] for n in "ab"} == {"a": {0: 12, 1: 12}, "b": {2: 12, 3: 12}}


def test_a_spare_gets_the_layers_from_a_peer_and_a_donor_lost_meanwhile_is_replaced() -> None:
    w = running(World(with_options(min_workers=4), replicas=2, least=4), "a", "b", "c", "d")
    w.join("e")
    w = at_step(w, 2)
    w.feed(e.Disconnected("d", "reset"))
    w.settle(until="gathering")
    w.feed(e.Disconnected("a", "reset"))
    w.settle()
    assert (w.phase, w.state.code) == ("finished", ExitCode.OK)
    assert not w.of(c.Rewind)
    assert [s.step for s in w.steps()] == list(range(12))


def test_a_stage_lost_with_all_replicas_goes_back_to_the_last_checkpoint_in_the_same_run() -> None:
    w = at_step(running(World(least=2)), 6)
    w.feed(e.Disconnected("b", "reset"))
    w.settle()
    assert w.phase == "gathering"
    assert w.state.reason == "b is gone; 1 device left: 2 workers are required"
    w.join("c")
    w.settle(until="loading")
    assert [x.step for x in w.given if isinstance(x, c.Rewind)] == [4]
    takes = [[x for x in w.orders(n) if isinstance(x, c.TakePlan)][-1] for n in "ac"]
    assert [(t.restore_step, t.step, t.sources) for t in takes] == [(4, 4, ())] * 2
    w.settle()
    assert (w.phase, w.state.code) == ("finished", ExitCode.OK)
    assert [s.step for s in w.steps()] == list(range(12))
    assert [x.step for x in w.given if isinstance(x, c.RecordStep)] == [*range(6), *range(4, 12)]


def taken_up(done: int = 6) -> World:
    """A coordinator started again after `done` steps, two of them behind the checkpoint of step 4."""
    plan = line_plan(3, ["a", "b"])
    at_4 = Restore(4, tuple(a_file(i, 4) for i in range(4)))
    options = with_options(await_s=5.0)
    return World(options, at_4, taken_up=TakenUp(plan, done, 0.5), least=2)


def back(w: World, name: str, step: int, layers: range) -> None:
    """`name` joins again, with its layers."""
    w.join(name)
    w.has[name] = dict.fromkeys(layers, step)
    w.feed(e.Holds(name, step, layers.start, layers.stop))


def test_workers_that_kept_their_layers_go_on_under_a_new_coordinator_without_a_step_lost() -> None:
    w = taken_up()
    back(w, "a", 6, range(2))
    back(w, "b", 6, range(2, 4))
    w.settle(until="loading")
    (take,) = [x for x in w.orders("a") if isinstance(x, c.TakePlan)]
    assert (take.step, take.restore_step, take.plan.version) == (6, None, 4)
    w.settle()
    assert (w.phase, w.state.code) == ("finished", ExitCode.OK)
    assert not w.of(c.Rewind)
    assert [x.step for x in w.given if isinstance(x, c.RecordStep)] == list(range(6, 12))


def test_who_is_back_waits_for_the_others_but_not_for_ever() -> None:
    w = taken_up()
    back(w, "a", 6, range(2))
    w.join("c")
    w.settle()
    assert (w.phase, w.state.reason) == ("gathering", "waiting for b to come back")
    w.feed(e.Tick(), after_s=w.state.options.await_s - 1)
    assert w.phase == "gathering"
    w.feed(e.Tick(), after_s=2.0)
    w.settle()
    assert (w.phase, w.state.code) == ("finished", ExitCode.OK)
    assert [x.step for x in w.given if isinstance(x, c.Rewind)] == [4]


def test_a_run_taken_up_by_new_workers_goes_back_to_the_checkpoint_at_once() -> None:
    w = taken_up()
    w.join("c", "d")
    w.settle()
    assert (w.phase, w.state.code) == ("finished", ExitCode.OK)
    assert [x.step for x in w.given if isinstance(x, c.Rewind)] == [4]
    assert [x.step for x in w.given if isinstance(x, c.RecordStep)] == list(range(4, 12))


def test_a_worker_that_was_silent_and_is_back_with_its_layers_costs_no_step() -> None:
    w = at_step(running(World(least=2)), 6)
    done = w.state.done
    w.feed(e.Disconnected("b", "reset"))
    w.settle()
    assert w.phase == "gathering"
    back(w, "b", done, range(2, 4))
    w.settle()
    assert (w.phase, w.state.code) == ("finished", ExitCode.OK)
    assert not w.of(c.Rewind)


def test_a_stage_lost_before_the_first_checkpoint_begins_again() -> None:
    w = at_step(running(World(least=1)), 3)
    w.feed(e.Disconnected("b", "reset"))
    w.settle()
    assert [x.step for x in w.given if isinstance(x, c.Rewind)] == [0]
    assert (w.phase, [s.step for s in w.steps()]) == ("finished", list(range(12)))


def test_votes_of_a_step_that_lost_a_rank_do_not_count_for_its_repetition() -> None:
    w = running(World(with_options(min_workers=4), replicas=2, least=4), "a", "b", "c", "d")
    for n in "abc":
        w.feed(w.a_step(n, 0))
    w.feed(e.Disconnected("d", "reset"))
    assert w.steps() == []
    w.settle(until="loading")
    w.settle(until="running")
    w.feed(w.a_step("a", 0))
    assert w.steps() == []
    w.feed(w.a_step("b", 0))
    assert [s.plan_version for s in w.steps()] == [2]


def test_a_worker_that_fails_on_its_own_is_replaced_and_a_bad_number_is_not() -> None:
    for code, phase in ((ExitCode.DEVICE, "planning"), (ExitCode.DIVERGED, "failed")):
        w = running(World(with_options(min_workers=4), replicas=2, least=4), "a", "b", "c", "d")
        w.feed(e.Failed("d", code, "trouble", fatal=True))
        assert w.phase == phase


def test_draining_while_the_run_finds_another_plan_saves_first() -> None:
    w = at_step(running(World(with_options(min_workers=4), replicas=2, least=4), "a", "b", "c", "d"), 2)
    w.feed(e.Disconnected("d", "reset"))
    w.feed(e.Drain("Ctrl-C"))
    assert w.phase == "planning"
    w.settle()
    assert (w.phase, w.state.code) == ("finished", ExitCode.OK)
    assert [m.step for m in w.manifests()] == [2]


def test_a_newcomer_with_other_data_is_sent_away_and_the_run_goes_on_waiting() -> None:
    w = at_step(running(World(least=2)), 2)
    w.feed(e.Disconnected("b", "reset"))
    w.settle()
    w.join("c")
    w.forget("c")
    w.feed(replace(w.state.profiles["a"], worker="c", data_digest="other"))
    (stop,) = [x for x in w.orders("c") if isinstance(x, c.Stop)]
    assert stop.code is ExitCode.WORKERS_DISAGREE
    assert w.phase in ("gathering", "profiling")


def test_silence_is_judged_by_the_heartbeats_that_came() -> None:
    def after_silence(between_s: float, silent_s: float) -> str:
        options = with_options(silence=Patience(8.0, 2.0, 1e6))
        w = running(World(options))
        for _ in range(10):
            w.feed(e.Heartbeat("a"), after_s=between_s / 2)
            w.feed(e.Heartbeat("b"), after_s=between_s / 2)
        for _ in range(20):
            w.feed(e.Heartbeat("a"), after_s=silent_s / 20)
        w.feed(e.Tick())
        return w.phase

    assert after_silence(1.0, 1.9) == "running"
    assert after_silence(1.0, 2.2) == "planning"
    assert after_silence(4.0, 3.9) == "running", "slow but steady heartbeats earn a longer deadline"


def test_the_deadline_grows_with_median_and_deviation() -> None:
    patience = Patience(k=4, floor_s=0.1, unknown_s=9)
    steady = patience.deadline_s([1.0] * 9)
    erratic = patience.deadline_s([0.5, 1.0, 1.5] * 3)
    assert (steady, erratic) == (1.0, 1.0 + 4 * 1.4826 * 0.5)
    assert patience.deadline_s([1.0, 1.0]) == 9
    assert Patience(k=4, floor_s=5, unknown_s=9).deadline_s([1.0] * 9) == 5
    assert Patience(k=4, floor_s=5, unknown_s=9, times=3).deadline_s([100.0] * 9) == 300


def cut(worker: str) -> e.Failed:
    return e.Failed(worker, ExitCode.PEER_UNREACHABLE, "the link to d is cut", fatal=False)


@pytest.mark.parametrize("phase", ["loading", "running", "evaluating", "saving"])
def test_a_link_that_breaks_costs_the_step_and_nobody_is_sent_away(phase: str) -> None:
    w = running(World(with_options(min_workers=4), replicas=2, least=4), "a", "b", "c", "d")
    if phase == "loading":
        w.feed(cut("b"))
    w.settle(until=phase)
    version, done = w.state.plan_version, w.state.done
    w.feed(cut("c"))
    assert w.phase == "planning"
    assert "the link to d is cut" in w.state.interrupted
    w.settle()
    assert (w.phase, w.state.code) == ("finished", ExitCode.OK)
    assert w.state.plan_version == version + 1
    assert not w.of(c.Evict)
    assert [s.step for s in w.steps()] == list(range(12))
    assert next(s for s in w.steps() if s.step == done).plan_version == version + 1


@pytest.mark.parametrize("phase", ["planning", "loading", "running"])
def test_a_link_that_was_cut_under_a_plan_that_is_over_costs_no_later_one(phase: str) -> None:
    w = running(World(with_options(min_workers=4), replicas=2, least=2), "a", "b", "c", "d")
    w.feed(e.Disconnected("d", "reset"))
    w.settle(until=phase)
    late = w.feed(replace(cut("b"), peer="d", plan_version=1))
    assert "under plan 1, which is over" in late.reason or phase == "planning"
    assert (w.phase, w.state.plan_version) == (phase, 2)
    assert not late.commands
    w.settle()
    assert (w.phase, w.state.code) == ("finished", ExitCode.OK)
    assert [x.version for x in w.given if isinstance(x, c.MakePlan)] == [1, 2]
    w = running(World(with_options(min_workers=4), replicas=2, least=2), "a", "b", "c", "d")
    w.feed(replace(cut("b"), peer="d", plan_version=1))
    assert (w.phase, w.state.plan_version) == ("planning", 2), "of the plan that runs it does"


def test_what_is_learnt_of_a_newcomer_while_a_plan_is_made_costs_nobody_the_plan() -> None:
    w = running(World(with_options(min_workers=4), replicas=2, least=2), "a", "b", "c", "d")
    w.join("e", "f")
    w.feed(e.Disconnected("d", "reset"))
    w.answer("e")
    assert "e" in w.state.profiles
    assert (w.phase, w.state.plan_version, w.state.team) == ("planning", 2, ("a", "b", "c"))
    assert w.orders("f") == [c.Profile()], "what lacks of them is measured beside"
    w.answer_shell()
    assert (w.phase, w.state.plan_version) == ("loading", 2)
    w.settle(until="finished")
    assert set(w.state.known) == set("abcef")
    assert [x.version for x in w.given if isinstance(x, c.MakePlan)] == [1, 2]


def test_who_comes_to_be_known_while_a_plan_is_made_is_planned_for() -> None:
    w = running(World(with_options(min_workers=4), replicas=2, least=2), "a", "b", "c", "d")
    w.join("e")
    w.feed(e.Disconnected("d", "reset"))
    w.settle(until="loading")
    asked = [[d.name for d in x.devices] for x in w.given if isinstance(x, c.MakePlan)]
    assert asked == [["a", "b", "c", "d"], ["a", "b", "c"], ["a", "b", "c", "e"]]


def test_who_tells_of_broken_links_in_one_step_too_often_is_done_without() -> None:
    w = running(World(with_options(min_workers=4), replicas=2, least=2), "a", "b", "c", "d")
    for _ in range(MAX_CUTS):
        w.feed(cut("c"))
        w.settle(until="running")
    assert not w.of(c.Evict)
    w.feed(cut("c"))
    assert [x.worker for x in w.given if isinstance(x, c.Evict)] == ["c"]
    w.settle()
    assert (w.phase, w.state.code) == ("finished", ExitCode.OK)


def test_a_link_of_a_worker_without_a_rank_is_nobodys_step() -> None:
    w = running()
    w.join("spare")
    before = w.state.plan_version, w.phase
    w.feed(cut("spare"))
    assert (w.state.plan_version, w.phase) == before

"""Steps, evaluations, checkpoints, draining, losses of workers: each history by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from coordinator import commands as c
from coordinator import events as e
from coordinator.drive import recorded_steps
from coordinator.records import Restore, TakenUp
from scheduler.departures import Departure, Gone
from scheduler.exit_codes import ExitCode
from scheduler.liveness import Patience
from scheduler.samples import Ledger

from .world import World, a_file, line_plan, with_options


def running(world: World | None = None, *names: str) -> World:
    w = world or World()
    w.join(*(names or ("a", "b")))
    w.settle(until="running")
    return w


def test_a_whole_run_commits_every_step_once_and_ends_saved() -> None:
    w = running()
    w.settle()
    assert (w.phase, w.state.code) == ("finished", ExitCode.OK)
    assert [s.step for s in w.steps()] == list(range(12))
    ledger = Ledger()
    for s in w.steps():
        ledger = ledger.consume(s.first_sample, s.end_sample)
    assert ledger.ranges == ((0, 96),)
    assert [m.step for m in w.manifests()] == [4, 8, 12]
    assert [m.next_sample for m in w.manifests()] == [32, 64, 96]
    assert [x.step for x in w.given if isinstance(x, c.RecordEval)] == [6, 12]
    assert [x.body for x in w.given if isinstance(x, c.Order) and isinstance(x.body, c.Stop)] == [
        c.Stop(ExitCode.OK, "all 12 steps are done")
    ] * 2


def test_the_loss_is_the_token_weighted_mean_of_the_last_stages() -> None:
    w = running(World(with_options(min_workers=4), replicas=2), "a", "b", "c", "d")
    assert w.state.plan is not None
    assert w.state.plan.placement == (("a", "b"), ("c", "d"))
    for worker, loss_sum, tokens in (("a", 0.0, 0), ("c", 0.0, 0), ("b", 90.0, 30), ("d", 10.0, 10)):
        w.feed(replace(w.a_step(worker, 0), loss_sum=loss_sum, tokens=tokens))
    (step,) = w.steps()
    assert (step.loss, step.tokens) == (2.5, 40)
    assert (step.sent_bytes, step.raw_bytes) == (400, 800)


def test_a_step_is_not_committed_before_the_last_rank_has_done_it() -> None:
    w = running()
    w.feed(w.a_step("b", 0))
    w.feed(w.a_step("b", 1))
    assert w.steps() == []
    assert not [x for x in w.orders("b") if isinstance(x, c.Commit)]
    given = len(w.given)
    w.feed(w.a_step("a", 0))
    assert [s.step for s in w.steps()] == [0]
    record, *told = w.given[given:]
    assert isinstance(record, c.RecordStep), "what is told is written down before"
    norm = math.sqrt(0.25 + 0.25)
    assert told[:2] == [c.Order(n, c.Commit(1, 0, norm)) for n in ("a", "b")]


def test_each_pipeline_clips_by_the_norm_of_its_own_votes_and_a_norm_that_is_none_names_the_layer() -> None:
    w = running(World(with_options(min_workers=4), replicas=2), "a", "b", "c", "d")
    for worker in ("a", "b", "c"):
        w.feed(w.a_step(worker, 0))
    w.feed(replace(w.a_step("d", 0), squares=(9.0, 6.75)))
    told = {
        x.worker: x.body.grad_norm for x in w.given if isinstance(x, c.Order) and isinstance(x.body, c.Commit)
    }
    assert told == {"a": math.sqrt(0.5), "b": math.sqrt(0.5), "c": 4.0, "d": 4.0}
    for worker in ("a", "b", "d"):
        w.feed(w.a_step(worker, 1))
    w.feed(replace(w.a_step("c", 1), squares=(1.0, float("inf"))))
    assert (w.phase, w.state.code) == ("failed", ExitCode.DIVERGED)
    assert "found a gradient of layer 1 on c (rank 2)" in w.state.reason
    assert len(w.steps()) == 1


@pytest.mark.parametrize(
    "change",
    [{"step": 11}, {"plan_version": 7}, {"worker": "stranger"}],
    ids=["not granted", "another plan", "not a member"],
)
def test_a_report_that_does_not_belong_is_ignored(change: dict[str, object]) -> None:
    w = running()
    before = w.state.done, w.state.votes
    w.feed(replace(w.a_step("a", 0), **change))  # type: ignore[arg-type]
    assert (w.state.done, w.state.votes) == before
    w.settle()
    assert [s.step for s in w.steps()] == list(range(12))


def test_the_same_report_twice_counts_once() -> None:
    w = running()
    for worker in ("a", "a", "a"):
        w.feed(w.a_step(worker, 0))
    assert w.steps() == []
    assert "twice" in w.reasons[-1]


def test_grants_follow_one_another_and_never_cross_a_boundary() -> None:
    w = running()
    w.settle()
    grants = [x for x in w.orders("a") if isinstance(x, c.RunSteps)]
    assert grants == [x for x in w.orders("b") if isinstance(x, c.RunSteps)]
    at = 0
    for g in grants:
        assert (g.start, g.start < g.stop) == (at, True)
        for edge in (4, 6, 8, 12):
            assert not g.start < edge < g.stop
        at = g.stop
    assert at == 12


def test_steps_are_granted_ahead_so_that_nobody_waits_and_a_drain_is_near() -> None:
    w = running(World(with_options(steps=1000, eval_every=0, save_every=0)))
    assert w.state.granted == 2
    for step in range(20):
        for worker in ("a", "b"):
            w.feed(w.a_step(worker, step), after_s=0.05)
    ahead = w.state.granted - w.state.done
    assert 5 <= ahead <= 12, "about a second of steps of 0.1 s"


@pytest.mark.parametrize(
    ("steps", "wanted"), [(1, [0]), (12, [1, 8, 11]), (60, [1, 26, 40, 51, 59]), (9000, 102)]
)
def test_spans_are_asked_of_an_early_step_and_one_in_so_many_and_of_the_last(
    steps: int, wanted: list[int] | int
) -> None:
    found = recorded_steps(World(with_options(steps=steps)).state)
    assert (list(found) if isinstance(wanted, list) else len(found)) == wanted


def test_spans_are_asked_for_with_the_steps() -> None:
    w = running()
    w.settle()
    asked = [s for x in w.orders("a") if isinstance(x, c.RunSteps) for s in x.record]
    assert asked == [1, 8, 11]


def test_an_early_step_of_every_plan_is_recorded() -> None:
    state = replace(World(with_options(steps=100)).state, plan_first=70)
    assert recorded_steps(state) == (66, 71, 96, 99)


def test_evaluation_comes_before_the_checkpoint_of_the_same_step_and_rates_it() -> None:
    w = running(World(with_options(eval_every=4)))
    w.settle()
    assert [m.eval_loss for m in w.manifests()] == [2.0, 2.0, 2.0]


def test_a_checkpoint_without_an_evaluation_of_its_own_is_not_rated() -> None:
    w = running()
    w.settle()
    assert [m.eval_loss for m in w.manifests()] == [None, None, 2.0]


def test_an_evaluation_that_saw_nothing_is_not_recorded_and_the_run_goes_on() -> None:
    w = running()
    w.settle(until="evaluating")
    for worker in ("a", "b"):
        w.forget(worker)
        w.feed(e.Evaluated(worker, 6, 0.0, 0))
    assert w.phase == "running"
    assert w.state.eval_loss is None


# ---- checkpoints


def test_the_manifest_waits_for_every_stage_and_lists_what_the_store_holds() -> None:
    w = running()
    w.settle(until="saving")
    w.answer("a")
    assert w.manifests() == []
    w.answer("b")
    (m,) = w.manifests()
    assert [f.name for f in m.files] == [f"layer-{i:04d}.safetensors" for i in range(4)]


def test_only_replica_0_is_waited_for() -> None:
    w = running(World(with_options(min_workers=4), replicas=2), "a", "b", "c", "d")
    w.settle(until="saving")
    w.answer("a")
    w.answer("b")
    assert len(w.manifests()) == 1


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ((replace(a_file(0, 4), sha256="f" * 64), a_file(1, 4)), "says sha256 ffffffffffff"),
        ((a_file(0, 4),), "nobody put the layers 1"),
        ((a_file(0, 4), a_file(1, 4), a_file(9, 4)), "the store does not hold it"),
    ],
    ids=["another hash", "a layer missing", "never put"],
)
def test_a_checkpoint_that_does_not_add_up_is_discarded_and_the_run_goes_on(
    files: tuple[object, ...], said: str
) -> None:
    w = running()
    w.settle(until="saving")
    w.forget("a")
    for i in (0, 1):
        w.feed(e.LayerStored(4, a_file(i, 4)))
    w.feed(e.Saved("a", 4, files))  # type: ignore[arg-type]
    w.answer("b")
    assert c.DiscardSave(4) in w.given
    assert said in w.reasons[-1]
    assert "the run goes on" in w.reasons[-1]
    w.settle()
    assert w.phase == "finished"
    assert [m.step for m in w.manifests()] == [8, 12]


def test_a_full_disk_costs_a_checkpoint_but_not_the_run() -> None:
    w = running()
    w.settle(until="saving")
    w.feed(e.SaveFailed(4, "No space left on device"))
    assert w.phase == "running"
    w.feed(e.Failed("a", ExitCode.CHECKPOINT_WRITE, "put failed", fatal=False))
    w.settle()
    assert (w.phase, w.state.code) == ("finished", ExitCode.OK)


def test_a_full_disk_at_the_end_ends_the_run_with_its_code() -> None:
    w = running()
    while not (w.phase == "saving" and w.state.done == 12):
        busy = [x for x, q in w.waiting.items() if q]
        if busy:
            w.answer(busy[0])
        else:
            w.answer_shell()
    w.feed(e.SaveFailed(12, "No space left on device"))
    assert (w.phase, w.state.code) == ("failed", ExitCode.CHECKPOINT_WRITE)
    assert "step 12 failed: No space left" in w.state.reason


# ---- the end


def test_draining_finishes_what_is_granted_saves_and_ends() -> None:
    w = running()
    w.feed(w.a_step("a", 0))
    w.feed(e.Drain("Ctrl-C"))
    assert w.phase == "draining"
    granted = w.state.granted
    w.settle()
    assert (w.phase, w.state.code) == ("finished", ExitCode.OK)
    assert w.state.done == granted
    assert [m.step for m in w.manifests()] == [granted]


@pytest.mark.parametrize("phase", ["evaluating", "saving"])
def test_draining_at_a_boundary_ends_saved_without_another_step(phase: str) -> None:
    w = running()
    w.settle(until=phase)
    done = w.state.done
    w.feed(e.Drain("Ctrl-C"))
    w.settle()
    assert (w.phase, w.state.done) == ("finished", done)
    assert w.manifests()[-1].step == done


def test_draining_before_the_first_step_ends_at_once() -> None:
    w = World()
    w.join("a")
    w.feed(e.Drain("Ctrl-C"))
    assert (w.phase, w.state.code) == ("finished", ExitCode.OK)


def test_draining_right_after_a_resume_saves_nothing_twice() -> None:
    w = World(restore=Restore(4, tuple(a_file(i, 4) for i in range(4))))
    w.join("a", "b")
    w.settle(until="loading")
    w.feed(e.Drain("Ctrl-C"))
    assert w.phase == "finished"
    assert w.manifests() == []


def test_stopping_now_saves_nothing_and_says_it_was_interrupted() -> None:
    w = running()
    w.feed(e.Drain("Ctrl-C"))
    w.feed(e.Drain("Ctrl-C", now=True))
    assert (w.phase, w.state.code) == ("failed", ExitCode.INTERRUPTED)
    assert w.manifests() == []


def test_a_loss_that_is_no_number_ends_the_run() -> None:
    w = running()
    w.feed(w.a_step("a", 0))
    w.feed(replace(w.a_step("b", 0), loss_sum=float("nan")))
    assert (w.phase, w.state.code) == ("failed", ExitCode.DIVERGED)
    assert w.steps() == []


def test_a_step_in_which_no_token_was_counted_ends_the_run() -> None:
    w = running()
    w.feed(w.a_step("a", 0))
    w.feed(replace(w.a_step("b", 0), tokens=0))
    assert (w.phase, w.state.code) == ("failed", ExitCode.WORKER_FAILED)


def test_a_run_resumed_at_its_end_is_finished() -> None:
    w = World(restore=Restore(12, tuple(a_file(i, 12) for i in range(4))))
    w.join("a", "b")
    w.settle()
    assert (w.phase, w.steps(), w.manifests()) == ("finished", [], [])


# ---- losing a worker


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


def at_step(w: World, step: int) -> World:
    while w.state.done < step:
        busy = [x for x, q in w.waiting.items() if q]
        if busy:
            w.answer(busy[0])
        else:
            w.answer_shell()
    return w


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


def test_a_step_that_never_ends_is_named_with_those_it_waits_for() -> None:
    w = running(World(with_options(step=Patience(20.0, 10.0, 10.0), silence=Patience(8.0, 1e9, 1e9))))
    w.feed(w.a_step("a", 0))
    w.feed(e.Tick(), after_s=9.0)
    assert w.phase == "running"
    w.feed(e.Tick(), after_s=2.0)
    assert w.phase == "planning"
    assert w.state.departed["b"].code is Departure.OVERDUE
    assert w.state.departed["b"].reason.endswith("waiting for b")
    assert w.state.interrupted == w.state.departed["b"].reason


def stuck(w: World, waits_for: dict[str, int | None]) -> None:
    """Nobody votes, everybody's heart beats, and the step is overdue."""
    w.now += 11.0
    for name, rank in waits_for.items():
        w.feed(e.Heartbeat(name, rank))
    w.feed(e.Tick())


def test_a_step_that_nobody_hangs_in_is_done_again_over_new_connections_and_then_without_one_end() -> None:
    options = with_options(step=Patience(20.0, 10.0, 10.0), silence=Patience(8.0, 1e9, 1e9), min_workers=4)
    w = running(World(options, replicas=2), "a", "b", "c", "d")
    stuck(w, {"a": 1, "b": 0, "c": 3, "d": 2})
    assert (w.phase, set(w.state.members)) == ("planning", {"a", "b", "c", "d"})
    assert "over new connections" in w.state.interrupted
    w.settle(until="running")
    assert w.state.done == 0
    stuck(w, {"a": 1, "b": 0, "c": 3, "d": None})
    assert set(w.state.members) == {"a", "b", "c"}, "the one that hangs goes"
    w.settle(until="running")
    assert w.state.departed["d"].code is Departure.OVERDUE
    stuck(w, dict.fromkeys(w.state.ranks, 0))
    assert w.phase != "failed", "somebody goes each time, until nobody is left to go on with"
    w.settle()


def test_a_step_overdue_twice_that_is_nobodys_doing_ends_the_run() -> None:
    options = with_options(step=Patience(20.0, 10.0, 10.0), silence=Patience(8.0, 1e9, 1e9))
    w = running(World(options))
    w.state = replace(w.state, overdue_at=0, votes={n: w.a_step(n, 0) for n in ("a", "b")})
    w.feed(e.Tick(), after_s=11.0)
    assert (w.phase, w.state.code) == ("failed", ExitCode.STALLED)


def test_a_checkpoint_that_takes_long_is_no_stalled_step() -> None:
    w = running(World(with_options(step=Patience(20.0, 10.0, 10.0), silence=Patience(8.0, 1e9, 1e9))))
    w.settle(until="saving")
    w.feed(e.Tick(), after_s=1000.0)
    w.settle()
    assert w.phase == "finished"


def test_a_failure_that_is_not_fatal_is_only_said() -> None:
    w = running()
    w.feed(e.Failed("a", ExitCode.DEVICE, "clocked down", fatal=False))
    assert w.phase == "running"
    assert "clocked down" in w.reasons[-1]


def test_a_worker_that_cannot_save_for_whatever_reason_is_not_waited_for() -> None:
    w = running()
    w.settle(until="saving")
    w.forget("a")
    w.feed(e.Failed("a", ExitCode.INTERNAL, "the upload was refused", fatal=False))
    assert w.phase == "running"
    w.settle()
    assert [m.step for m in w.manifests()] == [8, 12]

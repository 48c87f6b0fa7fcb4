"""Steps, evaluations, checkpoints, draining: each history by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from coordinator import commands as c
from coordinator import events as e
from coordinator.drive import recorded_steps
from coordinator.records import Restore
from scheduler.departures import Departure
from scheduler.exit_codes import ExitCode
from scheduler.liveness import Patience
from scheduler.samples import Ledger

from .world import World, a_file, running, with_options


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

"""A stage lost with all its holders comes back from its neighbours, and all go back to their copies."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coordinator import commands as c
from coordinator import events as e
from coordinator.planning import Planning, topology_of, with_keepers
from scheduler.cost import predict
from scheduler.exit_codes import ExitCode
from scheduler.plan import PlanError
from scheduler.recovery import GoOn

from .job import a_job
from .world import World, line_plan, with_options


def line(every: int = 3, **options: object) -> World:
    w = World(with_options(steps=20, eval_every=0, neighbours_every=every, min_workers=3, **options), least=2)
    w.join("a", "b", "c")
    w.settle(until="running")
    return w


def until(w: World, done: int, copied: int = 0) -> World:
    """One command after the other, until so many steps are done, and there are copies of so many."""
    while w.state.done < done or w.state.copied_at < copied:
        busy = [n for n, queue in w.waiting.items() if queue]
        if busy:
            w.answer(busy[0])
        else:
            assert w.answer_shell()
    return w


def copied_to(w: World) -> list[int]:
    return [x.copy_step for x in w.orders("a") if isinstance(x, c.RunSteps) and x.copy_step]


def test_every_stage_is_kept_by_a_worker_of_another() -> None:
    w = line()
    assert sorted(k.holder for k in w.state.keepers) == ["a", "b", "c"]
    assert all(k.holder != k.keeper for k in w.state.keepers)
    assert {k.keeper for k in w.state.keepers} == {"a", "b", "c"}, "spread over all"


def test_copies_are_made_every_so_many_steps_one_set_at_a_time_and_counted_when_all_have_theirs() -> None:
    w = line(save_every=0, ahead_s=0.0)
    w.settle(until="saving")
    found = copied_to(w)
    assert found[:3] == [3, 6, 9]
    assert w.state.copied_at == found[-1]
    keeps = [x.copy_keeps for x in w.orders("a") if isinstance(x, c.RunSteps) and x.copy_step]
    assert keeps == [0, *found[:-1]]


def test_a_lost_stage_comes_back_from_its_neighbour_and_all_go_back_to_the_copies() -> None:
    w = line(save_every=0)
    until(w, 5, copied=3)
    at, done = w.state.copied_at, w.state.done
    w.feed(e.Disconnected("b", "killed"))
    w.settle(until="loading")
    (rewind,) = w.of(c.Rewind)
    assert isinstance(rewind, c.Rewind)
    assert rewind.step == at < done
    assert f"back to the copies that neighbours keep of step {at}, {done - at} step" in rewind.reason
    takes = {n: [x for x in w.orders(n) if isinstance(x, c.TakePlan)][-1] for n in w.state.ranks}
    assert all(t.step == at and t.restore_step is None for t in takes.values())
    assert all(s.donors for t in takes.values() for s in t.sources), "no checkpoint is read"
    (loading_s,) = {t.loading_s for t in takes.values()}
    assert loading_s > 0.05, "at least the latency of a link: all know how long it should take"
    w.settle()
    assert (w.phase, w.state.code) == ("finished", ExitCode.OK)
    assert [s.step for s in w.steps()] == list(range(20))


def test_a_checkpoint_that_is_further_goes_before() -> None:
    w = line(every=3, save_every=4)
    until(w, 5)
    saved = w.state.checkpoint
    assert saved is not None
    assert saved.step == 4 > w.state.copied_at
    w.feed(e.Disconnected("b", "killed"))
    w.settle(until="loading")
    (rewind,) = w.of(c.Rewind)
    assert isinstance(rewind, c.Rewind)
    assert rewind.step == 4
    assert "checkpoint" in rewind.reason


def test_who_is_lost_with_its_neighbour_leaves_no_copy() -> None:
    w = line(save_every=0)
    until(w, 3, copied=3)
    keeper = {k.holder: k.keeper for k in w.state.keepers}
    w.join("d", "e")
    w.feed(e.Disconnected("b", "killed"))
    w.feed(e.Disconnected(keeper["b"], "killed"))
    w.settle()
    assert [x.step for x in w.of(c.Rewind) if isinstance(x, c.Rewind)][-1] == 0
    assert (w.phase, len(w.steps())) == ("finished", 20)


def test_one_who_says_so_for_another_plan_or_step_is_not_believed() -> None:
    w = line(save_every=0)
    for event in (e.Copied("a", 7, 3), e.Copied("a", w.state.plan_version, 2)):
        w.feed(event)
    assert not w.state.copied
    assert not w.state.copies


def test_the_price_of_copies_is_among_the_plans_reasons() -> None:
    w = World(with_options(min_workers=2))
    w.join("a", "b")
    w.settle(until="planning")
    request = w.plan_request
    assert request is not None
    plan, topology = line_plan(request.version, ["a", "b"]), topology_of(request)
    predicted = predict(plan, request.model, request.profiles, topology)
    planning = Planning(request, topology, plan, predicted)
    found = with_keepers(a_job(checkpoint="{every: 0, neighbours_every: 5}"), planning)
    assert [(k.holder, k.keeper) for k in found.keepers] == [("a", "b"), ("b", "a")]
    assert "Each stage is kept by a neighbour too: 11.7 KiB every 5 steps" in found.plan.reasons[-1]
    assert found.copying_s > 0.05
    assert with_keepers(a_job(), planning) is planning


@pytest.mark.parametrize("goes_on", [False, True])
def test_copies_without_room_end_a_run_that_has_not_begun_and_no_other(goes_on: bool) -> None:
    w = World(with_options(min_workers=2))
    w.join("a", "b")
    w.settle(until="planning")
    asked = w.plan_request
    assert asked is not None
    devices = tuple(replace(d, host_cores=1, memory_bytes=40_000) for d in asked.devices)
    request = replace(asked, devices=devices)
    plan, topology = line_plan(request.version, ["a", "b"]), topology_of(request)
    predicted = predict(plan, request.model, request.profiles, topology)
    way = GoOn(plan, "repair", 0, {}, 0.0, "as it was") if goes_on else None
    planning = Planning(request, topology, plan, predicted, way)
    job = a_job(checkpoint="{every: 0, neighbours_every: 5}")
    if not goes_on:
        with pytest.raises(PlanError, match=r"copies for neighbours do not fit on a, .*neighbours_every"):
            with_keepers(job, planning)
        return
    found = with_keepers(job, planning)
    assert found.keepers == ()
    assert "No copies: the copies for neighbours do not fit" in found.plan.reasons[-1]

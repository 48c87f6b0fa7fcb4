"""Another plan while one runs: when it is looked for, and that a move loses no step."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coordinator import commands as c
from coordinator import events as e
from coordinator.planning import Planning, look, topology_of
from coordinator.records import State
from scheduler.cost import predict
from scheduler.exit_codes import ExitCode
from scheduler.job import JobSpec
from scheduler.observed import Factors
from scheduler.plan import PlanError
from scheduler.replan import Move, Stay

from .job import a_job
from .world import World, line_plan, with_options

SLOW_B = Factors({"a": 1.0, "b": 4.0}, {("a", "b"): 2.0, ("b", "a"): 2.0})


def running(*names: str, **options: object) -> World:
    w = World(with_options(steps=40, eval_every=0, save_every=0, **options))
    w.join(*(names or ("a", "b")))
    w.settle(until="running")
    return w


def pass_time(w: World, factors: Factors = SLOW_B, after_s: float = 30.0) -> None:
    """A step is watched, heartbeats come, time passes."""
    w.now += after_s
    for name in w.state.members:
        w.feed(e.Heartbeat(name))
    w.feed(e.Observed(w.state.plan_version, factors))
    w.feed(e.Tick())


def step(w: World) -> None:
    for worker in w.state.ranks:
        w.answer(worker) if w.waiting[worker] else None


def looks(w: World) -> list[c.Reconsider]:
    return [x for x in w.given if isinstance(x, c.Reconsider)]


def test_nothing_is_looked_for_while_nothing_has_changed_and_nobody_stands_by() -> None:
    w = running()
    pass_time(w, Factors({"a": 1.04, "b": 0.97}))
    assert looks(w) == []


def test_what_has_changed_is_looked_at_with_what_it_is_now() -> None:
    w = running()
    before = w.state.profiles["b"].profile
    pass_time(w)
    (asked,) = looks(w)
    (a, b) = asked.request.profiles
    assert b.forward_s == tuple(4 * x for x in before.forward_s)
    assert a.forward_s == before.forward_s
    sample = dict(asked.request.links)["a"]
    assert (sample.latency_s, sample.bandwidth_Bps) == (0.1, 5e6)
    assert (asked.running, asked.streak) == (w.state.plan, 0)


def test_one_look_at_a_time_and_none_without_another_watched_step() -> None:
    w = running()
    pass_time(w)
    w.feed(e.Tick(), after_s=0.5)
    assert len(looks(w)) == 1, "the first is not answered yet"
    w.feed(e.Reconsidered(1, None, 2, "seen 2 times"))
    assert (w.state.outlook.streak, w.state.outlook.reason) == (2, "seen 2 times")
    w.now += 40.0
    w.feed(e.Heartbeat("a"))
    w.feed(e.Heartbeat("b"))
    w.feed(e.Tick())
    assert len(looks(w)) == 1, "nothing was seen since"
    pass_time(w)
    assert [x.streak for x in looks(w)] == [0, 2]


@pytest.mark.parametrize("change", [{"reconsider_s": 0.0}, {"draining": "asked to"}])
def test_nothing_is_looked_for_where_it_is_of_no_use(change: dict[str, object]) -> None:
    w = running()
    if "reconsider_s" in change:
        w.state = replace(w.state, options=replace(w.state.options, reconsider_s=0.0))
    else:
        w.state = replace(w.state, draining="asked to")
    pass_time(w)
    assert looks(w) == []


def test_a_move_waits_for_the_granted_steps_and_everybody_keeps_what_they_have() -> None:
    w = running()
    pass_time(w)
    granted = w.state.granted
    assert w.state.done < granted
    w.reconsider()
    assert w.phase == "running"
    assert "faster" in w.state.reason
    w.settle(until="planning")
    assert (w.state.done, w.state.granted) == (granted, granted)
    request = w.plan_request
    assert request is not None
    assert request.chosen is not None
    w.answer_shell()
    (take,) = {x.plan.version for x in w.orders("a") if isinstance(x, c.TakePlan)} - {1}
    assert take == 2
    last = [x for x in w.orders("a") if isinstance(x, c.TakePlan)][-1]
    assert (last.restore_step, last.step) == (None, granted)
    assert all(s.donors == ("a",) for s in last.sources)
    w.settle()
    assert (w.phase, w.state.code) == ("finished", ExitCode.OK)
    assert [s.step for s in w.steps()] == list(range(40))
    assert w.of(c.Rewind) == []


def test_what_was_seen_is_what_is_measured_once_the_plan_is_left() -> None:
    w = running()
    before: State = w.state
    pass_time(w)
    w.reconsider()
    w.settle(until="loading")
    assert w.state.profiles["b"].profile == SLOW_B.profile(before.profiles["b"].profile)
    assert w.state.links["a", "b"].bandwidth_Bps == before.links["a", "b"].bandwidth_Bps / 2
    assert w.state.outlook.factors == Factors(), "the new plan is a yardstick of its own"


def test_one_who_joins_is_measured_beside_the_steps_and_taken_in_when_it_pays() -> None:
    w = running()
    w.join("c")
    while w.state.known != ("a", "b", "c"):
        w.answer("c" if w.waiting["c"] else next(n for n in ("a", "b") if w.waiting[n]))
    assert w.phase == "running"
    pass_time(w, Factors())
    (asked,) = looks(w)
    assert [d.name for d in asked.request.devices] == ["a", "b", "c"]
    w.reconsider()
    w.settle(until="loading")
    assert w.state.ranks == ("a", "b", "c")
    sources = next(x for x in w.orders("c") if isinstance(x, c.TakePlan)).sources
    assert {d for s in sources for d in s.donors} == {"b"}, "its layers come from who has them"
    w.settle()
    assert [s.step for s in w.steps()] == list(range(40))


def test_one_who_is_lost_before_the_boundary_takes_the_move_along() -> None:
    w = running("a", "b")
    w.join("c")
    while w.state.known != ("a", "b", "c"):
        w.answer("c" if w.waiting["c"] else next(n for n in ("a", "b") if w.waiting[n]))
    pass_time(w, Factors())
    w.reconsider()
    w.feed(e.Disconnected("c", "reset"))
    w.settle(until="planning")
    assert w.plan_request is not None
    assert w.plan_request.chosen is None
    w.settle()
    assert (w.phase, len(w.steps())) == ("finished", 40)


def test_an_answer_about_a_plan_that_is_over_moves_nothing() -> None:
    w = running()
    w.feed(e.Reconsidered(0, line_plan(9, ["b", "a"]), 0, "late"))
    w.feed(e.Observed(0, SLOW_B))
    assert w.state.outlook.chosen is None
    assert w.state.outlook.seen == 0


# ---- the shell's look


def asked_of(w: World) -> c.Reconsider:
    pass_time(w)
    (asked,) = looks(w)
    return replace(asked, streak=2, steps=10_000)


def planner_of(*names: str) -> object:
    def planner(_: JobSpec, request: c.MakePlan) -> Planning:
        plan = line_plan(request.version, list(names))
        topology = topology_of(request)
        return Planning(request, topology, plan, predict(plan, request.model, request.profiles, topology))

    return planner


def test_the_look_prices_both_plans_with_what_is_known_now() -> None:
    asked = asked_of(running())
    match look(a_job(), asked, planner_of("a")):  # type: ignore[arg-type]
        case Move(plan):
            assert plan.devices == ("a",)
        case Stay(_, reason):
            raise AssertionError(reason)
    assert isinstance(look(a_job(), asked, planner_of("a", "b")), Stay)  # type: ignore[arg-type]


def test_no_other_plan_is_a_reason_to_stay() -> None:
    def none(_: JobSpec, __: c.MakePlan) -> Planning:
        raise PlanError("nothing fits")

    answer = look(a_job(), asked_of(running()), none)
    assert isinstance(answer, Stay)
    assert "nothing fits" in answer.reason

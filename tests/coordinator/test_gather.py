"""From the first worker to a loaded plan: who is taken in, what is measured when, what ends it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coordinator import commands as c
from coordinator import events as e
from coordinator.planning import topology_of
from coordinator.records import Restore
from scheduler.exit_codes import ExitCode

from .world import LAYERS, World, a_file, line_plan, with_options


def test_it_waits_for_enough_workers_and_says_how_many() -> None:
    w = World()
    w.join("a")
    assert (w.phase, w.state.reason) == ("gathering", "have 1 of 2 workers")
    w.join("b")
    assert w.phase == "profiling"


def test_a_member_counts_only_once_its_stream_is_open() -> None:
    w = World(with_options(min_workers=1))
    w.feed(w.a_join("a"))
    assert w.phase == "gathering"
    w.feed(e.Connected("a"))
    assert w.phase == "profiling"


def test_workers_of_one_host_are_profiled_one_after_the_other_and_other_hosts_beside() -> None:
    w = World(with_options(min_workers=3))
    w.join("a", "b", host="h")
    w.join("c")
    profiling = {n for n in "abc" if c.Profile() in w.orders(n)}
    assert profiling == {"a", "c"}
    w.answer("a")
    assert c.Profile() in w.orders("b")


def test_no_link_is_measured_before_all_are_profiled_and_no_host_measures_twice_at_once() -> None:
    w = World(with_options(min_workers=4))
    w.join("a", "b", "c", "d")
    for n in "abc":
        w.answer(n)
    assert not any(isinstance(x, c.MeasureLinks) for n in "abcd" for x in w.orders(n))
    w.answer("d")
    pairs = set()
    while w.phase == "measuring":
        under_way = [
            (n, m.device.name)
            for n, queue in w.waiting.items()
            for body in queue
            if isinstance(body, c.MeasureLinks)
            for m in [w.state.members[body.peers[0].name]]
        ]
        ends = [x for pair in under_way for x in pair]
        assert len(ends) == len(set(ends)), f"{under_way} disturb each other"
        pairs.update(under_way)
        w.answer(under_way[0][0])
    assert pairs == {(x, y) for x in "abcd" for y in "abcd" if x != y}
    assert w.phase == "planning"


def test_the_planner_gets_every_device_profile_and_directed_link() -> None:
    w = World()
    w.join("a", "b")
    w.settle(until="planning")
    assert w.plan_request is not None
    assert [d.name for d in w.plan_request.devices] == ["a", "b"]
    assert w.plan_request.model.layers == LAYERS
    assert [(src, link.peer) for src, link in w.plan_request.links] == [("a", "b"), ("b", "a")]


def test_a_plan_is_loaded_by_all_and_starts_when_all_are_ready() -> None:
    w = World()
    w.join("a", "b")
    w.settle(until="loading")
    take = w.waiting["a"][0]
    assert isinstance(take, c.TakePlan)
    assert take == w.waiting["b"][0]
    assert [p.name for p in take.peers] == ["a", "b"]
    assert take.restore_step is None
    w.answer("a")
    assert w.phase == "loading"
    w.answer("b")
    assert w.phase == "running"


def test_a_resumed_run_hands_out_the_checkpoint_and_continues_at_its_step() -> None:
    files = tuple(a_file(i, 4) for i in range(4))
    w = World(restore=Restore(4, files))
    w.join("a", "b")
    w.settle(until="loading")
    take = w.waiting["a"][0]
    assert isinstance(take, c.TakePlan)
    assert (take.restore_step, take.files) == (4, files)
    w.settle()
    assert [s.step for s in w.steps()] == list(range(4, 12))
    assert w.steps()[0].first_sample == 32


def test_a_taken_name_is_refused_while_its_owner_lives_and_given_when_it_is_gone() -> None:
    w = World()
    w.join("a")
    before = w.state
    refused = w.feed(w.a_join("a", incarnation="2")).commands
    assert refused == (c.Refuse(ExitCode.NAME_TAKEN, w.reasons[-1]),)
    assert "named 'a'" in w.reasons[-1]
    assert w.state == before
    w.feed(e.Disconnected("a", "reset"))
    assert w.feed(w.a_join("a", incarnation="2")).commands == ()
    assert w.state.members["a"].incarnation == "2"


def test_a_join_whose_reply_was_lost_may_be_repeated() -> None:
    w = World()
    w.feed(w.a_join("a"))
    assert w.feed(w.a_join("a")).commands == ()


@pytest.mark.parametrize("phase", ["profiling", "measuring", "planning"])
def test_losing_a_worker_before_a_plan_only_gathers_again_and_keeps_what_is_known(phase: str) -> None:
    w = World()
    w.join("a", "b")
    w.settle(until=phase)
    w.feed(e.Disconnected("b", "reset"))
    assert w.phase == "gathering"
    assert "b" in w.state.departed
    w.join("b", incarnation="2")
    w.settle()
    assert w.phase == "finished"
    profiled = [x for x in w.orders("a") if isinstance(x, c.Profile)]
    assert len(profiled) == 1, "a's profile was kept"


def test_a_plan_for_a_team_that_has_changed_is_dropped() -> None:
    w = World()
    w.join("a", "b")
    w.settle(until="planning")
    w.feed(e.Disconnected("b", "reset"))
    w.feed(e.Planned(line_plan(1, ["a", "b"])))
    assert w.state.plan is None
    assert w.phase == "gathering"


def test_a_late_joiner_stands_by_and_its_going_ends_nothing() -> None:
    w = World()
    w.join("a", "b")
    w.settle(until="loading")
    w.join("c")
    w.feed(e.Disconnected("c", "reset"))
    w.settle()
    assert w.phase == "finished"


def test_an_unreachable_peer_ends_the_run_naming_both_ends_and_the_address() -> None:
    w = World()
    w.join("a", "b")
    w.settle(until="measuring")
    w.feed(e.LinksMeasured("a", (e.LinkSample("b", 0, 0, "b:1 does not answer"),)))
    assert (w.phase, w.state.code) == ("failed", ExitCode.PEER_UNREACHABLE)
    assert w.state.reason == "a -> b: b:1 does not answer"


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"data_digest": "other"}, ExitCode.WORKERS_DISAGREE, "b sees data other"),
        ({"layers": LAYERS[:-1]}, ExitCode.WORKERS_DISAGREE, "build different layers"),
        ({"n_samples": 0}, ExitCode.DATA, "b found no training sample"),
    ],
)
def test_workers_that_do_not_fit_together_end_the_run(
    change: dict[str, object], code: ExitCode, said: str
) -> None:
    w = World()
    w.join("a", "b")
    w.answer("a")
    w.feed(replace(w.state.profiles["a"], worker="b", **change))  # type: ignore[arg-type]
    assert (w.phase, w.state.code) == ("failed", code)
    assert said in w.state.reason


def test_no_plan_and_a_plan_of_strangers_end_the_run() -> None:
    for event in (e.PlanFailed(1, "needs 9 GB, a has 1"), e.Planned(line_plan(1, ["a", "zz"]))):
        w = World()
        w.join("a", "b")
        w.settle(until="planning")
        w.feed(event)
        assert (w.phase, w.state.code) == ("failed", ExitCode.NO_PLAN)
        assert c.Stop(ExitCode.NO_PLAN, w.state.reason) in w.orders("a")


def test_a_plan_that_gives_out_another_batch_ends_the_run() -> None:
    w = World()
    w.join("a", "b")
    w.settle(until="planning")
    w.feed(e.Planned(replace(line_plan(1, ["a", "b"]), micro_batch=1)))
    assert (w.phase, w.state.code) == ("failed", ExitCode.NO_PLAN)
    assert w.state.reason == "plan 1 gives out 4 samples of 8"


def test_links_are_planned_with_what_one_flow_and_what_all_carry() -> None:
    w = World()
    w.join("a", "b")
    w.settle(until="planning")
    request = w.plan_request
    assert request is not None
    links = tuple((src, replace(x, flow_Bps=1e6 if src == "a" else 0.0)) for src, x in request.links)
    topology = topology_of(replace(request, links=links))
    a, b = (topology.index(n) for n in ("a", "b"))
    assert (topology.bandwidth_Bps[a, b], topology.striped(2).bandwidth_Bps[a, b]) == (1e7, 2e6)
    assert topology.striped(1).bandwidth_Bps[b, a] == 1e7


def test_a_dry_run_plans_and_releases_everybody() -> None:
    w = World(with_options(dry_run=True))
    w.join("a", "b")
    w.settle()
    assert (w.phase, w.state.code) == ("finished", ExitCode.OK)
    assert not [x for x in w.orders("a") if isinstance(x, c.TakePlan)]
    assert c.Stop(ExitCode.OK, w.state.reason) in w.orders("b")


def test_a_fatal_failure_ends_the_run_with_the_workers_own_code() -> None:
    w = World()
    w.join("a", "b")
    w.feed(e.Failed("b", ExitCode.DATA, "text.txt: no such file", fatal=True))
    assert (w.phase, w.state.code) == ("failed", ExitCode.DATA)
    assert w.state.reason == "b failed: text.txt: no such file"


def test_nobody_joins_a_run_that_is_over() -> None:
    w = World()
    w.join("a", "b")
    w.settle()
    (refusal,) = w.feed(w.a_join("c")).commands
    assert isinstance(refusal, c.Refuse)
    assert refusal.code is ExitCode.RUN_OVER

"""Any history keeps the promises: one plan at a time, each step committed once, the ledger exact."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from coordinator import commands as c
from coordinator import events as e
from coordinator.records import OVER
from scheduler.exit_codes import ExitCode
from scheduler.liveness import Patience
from scheduler.observed import Factors
from scheduler.samples import Ledger

from .world import World, with_options

NAMES = ("a", "b", "c", "d", "e")
workers = st.sampled_from(NAMES)


class Run(RuleBasedStateMachine):
    """Workers come, obey in any order, repeat themselves, lie about steps, and go."""

    def __init__(self, replicas: int = 1) -> None:
        super().__init__()
        self.replicas = replicas
        options = with_options(
            steps=9,
            eval_every=4,
            save_every=3,
            silence=Patience(8.0, 15.0, 50.0),
            regather_s=60.0,
            reconsider_s=3.0,
        )
        self.w = World(options, replicas=replicas, least=2)
        self.born = 0
        self.over: tuple[str, ExitCode, str] | None = None

    @rule(name=workers)
    def join(self, name: str) -> None:
        self.born += 1
        self.w.feed(self.w.a_join(name, str(self.born)))

    @rule(name=workers)
    def connect(self, name: str) -> None:
        self.w.feed(e.Connected(name))

    @rule(name=workers)
    def beat(self, name: str) -> None:
        self.w.feed(e.Heartbeat(name))

    @rule(data=st.data(), times=st.integers(1, 12))
    def obey(self, data: st.DataObject, times: int) -> None:
        for _ in range(times):
            busy = sorted(n for n, queue in self.w.waiting.items() if queue)
            if not busy:
                return
            self.w.answer(data.draw(st.sampled_from(busy)))

    @rule()
    def shell_answers(self) -> None:
        self.w.answer_shell()

    @precondition(lambda self: self.w.state.phase == "running")
    @rule(factor=st.sampled_from((0.5, 1.0, 4.0)), stale=st.booleans())
    def steps_are_watched(self, factor: float, stale: bool) -> None:
        version = self.w.state.plan_version - stale
        self.w.feed(e.Observed(version, Factors(dict.fromkeys(self.w.state.ranks, factor))), after_s=4.0)
        self.w.feed(e.Tick())

    @precondition(lambda self: self.w.look is not None)
    @rule(moves=st.booleans(), follows=st.booleans(), flaws=st.booleans())
    def the_look_is_answered(self, moves: bool, follows: bool, flaws: bool) -> None:
        self.w.shadows.spoiled = set(NAMES) if flaws else set()
        self.w.reconsider(moves, follows)

    @precondition(lambda self: self.w.state.ahead is not None)
    @rule(after_s=st.sampled_from((1.0, 100.0)))
    def following_fails_or_takes_long(self, after_s: float) -> None:
        ahead = self.w.state.ahead
        assert ahead is not None
        if after_s < 60:
            name = ahead.following.participants[0]
            self.w.feed(e.Followed(name, ahead.version, 0, "its bytes were spoiled"))
        for _ in range(10):
            for name in self.w.state.members:
                self.w.feed(e.Heartbeat(name), after_s=after_s / 10 / len(self.w.state.members))
        self.w.feed(e.Tick())

    @rule()
    def settle(self) -> None:
        self.w.settle()

    @rule(name=workers, step=st.integers(0, 10), version=st.integers(0, 3))
    def stray_step(self, name: str, step: int, version: int) -> None:
        """A report that is early, late, repeated or of another plan; a rank's true one when it fits."""
        if version == self.w.state.plan_version and step == self.w.state.done:
            return  # it would be taken for true
        self.w.feed(self.w.a_step(name, step, version))

    @rule(step=st.integers(0, 9))
    def disk_full(self, step: int) -> None:
        self.w.feed(e.SaveFailed(step, "No space left on device"))

    @rule(name=workers)
    def link_breaks(self, name: str) -> None:
        under = self.w.running[name].version if name in self.w.running else 0
        cut = e.Failed(name, ExitCode.PEER_UNREACHABLE, "its link is cut", fatal=False, plan_version=under)
        self.w.feed(cut)

    @rule(after_s=st.floats(0, 5))
    def time_passes(self, after_s: float) -> None:
        self.w.feed(e.Tick(), after_s=after_s)

    @precondition(lambda self: self.w.state.plan_version > 0)
    @rule(name=workers, how=st.sampled_from(("stream", "leaving", "device")))
    def lose(self, name: str, how: str) -> None:
        events: dict[str, e.Event] = {
            "stream": e.Disconnected(name, "reset"),
            "leaving": e.Leaving(name, "asked to"),
            "device": e.Failed(name, ExitCode.DEVICE, "fell off the bus", fatal=True),
        }
        self.w.feed(events[how])

    @precondition(lambda self: self.w.state.done > 5)
    @rule(now=st.booleans())
    def drain(self, now: bool) -> None:
        self.w.feed(e.Drain("asked to", now))

    @invariant()
    def each_step_is_committed_once_and_in_order(self) -> None:
        assert [s.step for s in self.w.steps()] == list(range(self.w.state.done))

    @invariant()
    def the_ledger_is_exact(self) -> None:
        ledger = Ledger()
        for s in self.w.steps():
            ledger = ledger.consume(s.first_sample, s.end_sample)
        assert (
            ledger.complete_to == ledger.n_consumed == self.w.state.done * self.w.state.options.global_batch
        )

    @invariant()
    def one_plan_at_a_time(self) -> None:
        s = self.w.state
        versions = [
            x.body.plan.version
            for x in self.w.given
            if isinstance(x, c.Order) and isinstance(x.body, c.TakePlan)
        ]
        assert versions == sorted(versions)
        recorded = [x.plan_version for x in self.w.given if isinstance(x, c.RecordStep)]
        assert recorded == sorted(recorded)
        assert set(recorded) <= set(versions)
        if s.phase in ("loading", "running", "evaluating", "saving", "draining"):
            assert s.plan is not None
            assert s.plan.version == s.plan_version == versions[-1]
            assert set(s.ranks) <= set(s.members), "no step without all of its ranks"

    @invariant()
    def what_is_told_is_written_down_before(self) -> None:
        written: set[tuple[int, int]] = set()
        for x in self.w.given:
            if isinstance(x, c.RecordStep):
                assert (x.plan_version, x.step) not in written
                written.add((x.plan_version, x.step))
            elif isinstance(x, c.Order) and isinstance(x.body, c.Commit):
                assert (x.body.plan_version, x.body.step) in written

    @invariant()
    def nobody_is_ahead_of_what_is_committed(self) -> None:
        s = self.w.state
        if s.phase in ("running", "evaluating", "saving", "draining"):
            for name in s.ranks:
                if name in self.w.running and self.w.running[name].version == s.plan_version:
                    assert max(self.w.has[name].values(), default=0) <= s.done

    @invariant()
    def nothing_is_granted_beyond_the_end_or_twice(self) -> None:
        assert self.w.state.done <= self.w.state.granted <= self.w.state.options.steps
        for name in NAMES:
            at = 0
            for x in self.w.orders(name):
                if isinstance(x, c.TakePlan):
                    at = x.step
                elif isinstance(x, c.RunSteps):
                    assert x.start == at
                    at = x.stop

    @invariant()
    def a_manifest_names_the_position_of_its_step(self) -> None:
        for m in self.w.manifests():
            assert m.next_sample == m.step * self.w.state.options.global_batch
            assert len(m.files) == self.w.state.options.n_layers
        assert self.w.state.checkpoint is None or self.w.state.checkpoint.step <= self.w.state.done

    @invariant()
    def what_is_over_stays_over(self) -> None:
        s = self.w.state
        assert len(self.w.of(c.Finish)) == (1 if s.phase in OVER else 0)
        if self.over is not None:
            assert self.over == (s.phase, s.code, s.reason)
        elif s.phase in OVER:
            self.over = (s.phase, s.code, s.reason)

    @invariant()
    def every_worker_is_in_one_place(self) -> None:
        assert not set(self.w.state.members) & set(self.w.state.departed)


Run.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestHistories = Run.TestCase


class CopiedRun(Run):
    """With copies at neighbours, so that a stage that is lost comes back from there."""

    def __init__(self) -> None:
        super().__init__()
        options = replace(self.w.state.options, neighbours_every=2, save_every=0)
        self.w.state = replace(self.w.state, options=options)

    @initialize()
    def three_begin(self) -> None:
        for name in NAMES[:3]:
            self.born += 1
            self.w.join(name, incarnation=str(self.born))
        self.w.settle(until="running")

    @invariant()
    def copies_are_where_they_are_taken_to_be(self) -> None:
        s = self.w.state
        for name, holding in s.copies.items():
            assert holding.layers <= self.w.kept[name].get(holding.step, set())


CopiedRun.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestCopiedHistories = CopiedRun.TestCase


class ReplicatedRun(Run):
    """The same with two replicas, so that whoever is lost leaves somebody who holds its layers."""

    def __init__(self) -> None:
        super().__init__(replicas=2)

    @initialize()
    def four_begin(self) -> None:
        for name in NAMES[:4]:
            self.born += 1
            self.w.join(name, incarnation=str(self.born))
        self.w.settle(until="running")


ReplicatedRun.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestReplicatedHistories = ReplicatedRun.TestCase


class FollowedRun(Run):
    """Begun with layers that travel beside the steps, to who has joined and within the plan."""

    def __init__(self) -> None:
        super().__init__(replicas=2)
        options = replace(self.w.state.options, steps=24, eval_every=9, save_every=7)
        self.w.state = replace(self.w.state, options=options)

    @initialize(flaws=st.sampled_from((set[str](), {"c"}, {"d"})), slow=st.sampled_from((set[str](), {"d"})))
    def two_begin_and_two_follow(self, flaws: set[str], slow: set[str]) -> None:
        self.w.shadows.spoiled, self.w.shadows.slow = flaws, slow
        for names in (NAMES[:2], NAMES[2:4]):
            self.born += 1
            self.w.join(*names, incarnation=str(self.born))
            while self.w.phase != "running" or self.w.state.known != NAMES[: len(self.w.state.members)]:
                busy = [n for n in reversed(NAMES) if self.w.waiting[n]]
                self.w.answer(busy[0]) if busy else self.w.answer_shell()
        self.steps_are_watched(1.0, stale=False)
        self.w.reconsider(follows=True)
        assert self.w.state.ahead is not None

    @rule(times=st.integers(1, 6))
    def all_obey_in_turn(self, times: int) -> None:
        for _ in range(times):
            for name in NAMES:
                if self.w.waiting[name]:
                    self.w.answer(name)

    @invariant()
    def who_follows_is_there_and_nobody_follows_what_is_over(self) -> None:
        s = self.w.state
        if s.ahead is not None and s.phase in ("running", "evaluating", "saving"):
            assert s.plan is not None
            assert s.plan.version == s.ahead.version >> 16
            assert set(s.ahead.following.participants) <= set(s.members)
            assert not s.ahead.meeting or s.granted == s.ahead.meeting

    @invariant()
    def what_is_taken_to_be_held_is_held(self) -> None:
        """Also what was followed: bit for bit, or not at all."""
        s = self.w.state
        if s.phase == "planning" and s.ahead is not None:
            for name, holding in s.held.items():
                there = self.w.has[name].keys() | self.w.shadows.at(name, holding.step).keys()
                assert holding.layers <= there
                if name in self.w.shadows.spoiled:
                    assert holding.layers <= self.w.has[name].keys()


FollowedRun.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestFollowedHistories = FollowedRun.TestCase

"""A whole run: steps one after the other while the network moves, devices come and go, and plans change.

What follows from a loss is decided by the code that decides it in a real run (`scheduler/recovery.py`): who
takes whose place, from whom layers come, whether all go back to the checkpoint. Who comes, or comes back, is
measured, and taken in between two steps if a plan with it pays (`scheduler/replan.py`), its layers before
that while the steps go on, if the links allow (`scheduler/following.py`). Layers travel over the network as
it is then. Draws nothing: chance is in the faults and the network that are given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf

from scheduler.cost import durations
from scheduler.exit_codes import ExitCode
from scheduler.following import following
from scheduler.layer_sources import holdings_of, loading_s, travelling
from scheduler.liveness import remember
from scheduler.moving import transfers_s
from scheduler.plan import Plan, PlanError
from scheduler.recovery import Gather, GoOn, Standing, adopt, recover
from scheduler.replan import Measured, Stay, reconsider
from scheduler.timeline import Timeline
from scheduler.topology import Topology
from scheduler.traffic import traffic
from scheduler.units import duration
from sim.ahead import Ahead
from sim.copies import Copies
from sim.faults import Faults
from sim.looking import Looking
from sim.losses import Loss, Step, first_loss
from sim.network import NetworkOverTime
from sim.presence import Presence
from sim.replay import Work, links_at, replay_at, require_devices
from sim.run_records import RunEvent, RunOptions, RunResult, StepDone

Planner = Callable[[Topology, Sequence[str], int], Plan]
"""(links of the moment, devices that are there, version) -> a plan; PlanError if there is none."""


def simulate_run(
    work: Work,
    network: NetworkOverTime,
    plan: Plan,
    options: RunOptions,
    planner: Planner,
    faults: Faults = Faults(),
    progress: Callable[[int], None] = lambda _: None,
) -> RunResult:
    """Run `options.steps` steps from `plan` on. `progress` is told how many steps are done.

    A run that cannot go on ends with the coordinator's code and reason instead of an exception.
    Raises PlanError for a plan of other devices, or of some that are not there at the start.
    """
    require_devices(plan, network)
    strange = sorted(rank for rank, _ in faults.crashes if rank >= plan.n_ranks)
    if strange:
        raise PlanError(f"found a crash of rank {strange[0]}, required one of 0 to {plan.n_ranks - 1}")
    return _Run(work, network, plan, options, planner, faults, progress).run()


class _Run:
    def __init__(
        self,
        work: Work,
        network: NetworkOverTime,
        plan: Plan,
        options: RunOptions,
        planner: Planner,
        faults: Faults,
        progress: Callable[[int], None],
    ) -> None:
        self._work, self._network, self._options, self._planner = work, network, options, planner
        self._faults, self._progress = faults, progress
        self._speeds = faults.speeds()
        self._region = {d.name: d.region for d in network.devices}
        self._presence = Presence(
            self._region, faults, self._region[plan.device(0)], measure_s=options.measure_s
        )
        self._copies = Copies(options.copy_every)
        self._looking = Looking(options.replan_every, options.look_every_s)
        self._ahead: Ahead | None = None
        """Layers that travel while steps go on."""
        self._t = options.start_s
        self._done = self._saved = 0
        self._crashes = set(faults.crashes)
        self._overdue_at = -1
        self._steps_s: tuple[float, ...] = ()
        self._known: tuple[int, float, Timeline] | None = None
        """(plan version, until when it holds, the step's timeline) while nothing changes."""
        self._result = RunResult(start_s=self._t)
        absent = [n for n in plan.devices if n not in self._presence.at(self._t)]
        if absent:
            raise PlanError(
                f"found a plan that needs {', '.join(absent)}, absent at {self._t:g} s by the faults"
            )
        self._back_s: dict[str, float] = {}
        """When processes that died are there again."""
        self._plan = plan
        self._take(plan)

    def run(self) -> RunResult:
        while self._done < self._options.steps and self._result.code is ExitCode.OK:
            if self._t >= self._options.deadline_s:
                self._end(ExitCode.INTERRUPTED, f"given up at {duration(self._t)}")
            else:
                self._step(self._plan)
        self._result.end_s = self._t
        self._result.tokens = self._done * self._options.tokens_a_step
        return self._result

    # ---- steps

    def _step(self, plan: Plan) -> None:
        timeline = self._timeline(plan)
        took_s = timeline.duration_s
        if len(self._result.timelines) < len(self._result.plans):
            self._result.timelines.append(timeline)
        again = self._overdue_at == self._done
        step = Step(plan, self._done, self._t, timeline, self._steps_s, again)
        loss = first_loss(step, self._faults, self._crashes, self._presence)
        self._account(plan, (loss.at_s if loss else self._t + took_s) - self._t)
        if loss:
            self._lose(loss)
            return
        self._result.steps.append(StepDone(self._done, self._t, took_s, plan.version))
        self._t += took_s
        self._done += 1
        self._steps_s = remember(self._steps_s, took_s)
        if self._options.save_every and self._done % self._options.save_every == 0:
            self._saved = self._done
        self._progress(self._done)
        if self._done < self._options.steps:
            for send in self._copies.begin(plan, self._done, self._t, self._travel_s):
                self._leave(*send)
            if self._ahead is not None:
                self._follow(self._ahead)
            else:
                self._look_for_better(plan)

    def _timeline(self, plan: Plan) -> Timeline:
        """Of a step that begins now; the last one again while nothing has changed."""
        if (
            self._known
            and self._known[0] == plan.version
            and self._t + self._known[2].duration_s < self._known[1]
        ):
            return self._known[2]
        timeline = replay_at(plan, self._work, self._network, self._t, self._speeds, self._faults.partitions)
        until_s = self._network.next_change_s(self._t)
        moments = [t for s in self._speeds.values() for t in s.times_s]
        moments += [t for p in self._faults.partitions for t in (p.from_s, p.until_s)]
        until_s = min([until_s, *(t for t in moments if t > self._t)])
        steady = self._t + timeline.duration_s < until_s
        self._known = (plan.version, until_s, timeline) if steady else None
        return timeline

    def _account(self, plan: Plan, seconds: float) -> None:
        self._hold(plan, seconds)
        for region, n_bytes in self._egress_bytes.items():
            _add(self._result.egress_bytes, region, n_bytes)

    def _hold(self, plan: Plan, seconds: float) -> None:
        for name in plan.devices:
            _add(self._result.device_s, name, seconds)

    def _take(self, plan: Plan) -> None:
        self._plan, self._ahead = plan, None
        self._looking.planned(self._here())
        self._copies.planned(plan, self._work.model, self._network.topology(self._t))
        self._result.plans.append(plan)
        w = self._work
        costs = durations(plan, w.model, w.profiles, self._network.topology(self._t))
        self._egress_bytes: dict[str, float] = {}
        for (a, b), n_bytes in traffic(plan, costs).items():
            src, dst = self._region[plan.device(a)], self._region[plan.device(b)]
            if src != dst:
                _add(self._egress_bytes, src, n_bytes)

    def _look_for_better(self, plan: Plan) -> None:
        """Between two steps: take another plan if it is time to look for one and it pays.

        Not while somebody is out of reach, whose loss is yet to be noticed; nor where replicas step alone:
        another plan would have to begin at the checkpoint.
        """
        here, options, looking = self._here(), self._options, self._looking
        if (
            plan.local_steps
            or not set(plan.devices) <= set(here)
            or not looking.due(here, self._done, self._t)
        ):
            return
        now = self._measured(here)
        try:
            new = self._planner(now.topology, here, plan.version + 1)
        except PlanError:
            looking.looked(here, self._t, 0)
            return
        answer = reconsider(plan, new, now, self._done, options.steps, looking.streak, options.patience)
        if isinstance(answer, Stay):
            if new_here := [n for n in here if n not in looking.known]:
                self._say(f"{', '.join(new_here)} came: {answer.reason.rstrip('.')}")
            looking.looked(here, self._t, answer.streak)
            return
        step_s, steps = self._steps_s[-1], options.steps
        follows = following(plan, answer.plan, now, self._done, steps, step_s)
        if isinstance(follows, str):
            found = adopt(self._standing(here, here), answer.plan, now, answer.reason.rstrip("."))
            self._result.moves += 1
            self._move(found, options.patience.restart_s)
            return
        self._say(f"plan {answer.plan.version}: {answer.reason} {follows.reason}")
        self._ahead = Ahead(answer.plan, answer.reason, follows, self._done + follows.steps)
        looking.looked(here, self._t, 0)
        self._send(self._ahead, first=True)

    def _follow(self, ahead: Ahead) -> None:
        """Between two steps: the layers come nearer, are there, or are nobody's to take any more."""
        here = self._here()
        if not ahead.able(here):
            self._ahead = None
            self._say(f"plan {ahead.plan.version} is not taken: not all are there that it needs")
        elif self._done < ahead.at_step:
            self._send(ahead, first=False)
        else:
            standing = self._standing(here, here)
            standing = replace(standing, holdings=ahead.holdings(standing.holdings, self._done))
            found = adopt(standing, ahead.plan, self._measured(here), ahead.reason.rstrip("."))
            self._result.moves += 1
            self._move(found, self._options.patience.restart_s + ahead.following.pause_s)

    def _send(self, ahead: Ahead, first: bool) -> None:
        for send in ahead.sent(self._work.model, first):
            self._leave(*send)

    def _measured(self, here: Sequence[str]) -> Measured:
        """What is known at this moment of those who are there."""
        w, there = self._work, set(here)
        profiles = [p for p in w.profiles if p.device in there]
        return Measured(w.model, profiles, self._network.topology(self._t))

    def _standing(self, here: Sequence[str], kept: Sequence[str]) -> Standing:
        """Of a run whose devices `kept` have their layers still."""
        o, holdings = self._options, holdings_of(self._plan, self._done, kept)
        self._copies.arrived(self._t)
        copies, saved = self._copies.only_of(kept), self._saved or None
        return Standing(self._plan, tuple(here), holdings, self._done, o.steps, saved, copies, o.shape)

    def _move(self, found: GoOn, besides_s: float) -> None:
        """Layers travel from those who hold them, over the links as they are now."""
        plan, model = found.plan, self._work.model
        links = links_at(self._network, self._t, plan.streams, self._faults.partitions)
        took_s = loading_s(found.sources, model, links) + besides_s
        for send in travelling(found.sources, model):
            self._leave(*send)
        self._say(f"plan {plan.version}: {found.reason}; ready in {duration(took_s)}")
        self._t += took_s
        self._take(plan)
        self._hold(plan, took_s)

    def _travel_s(self, sends: Sequence[tuple[str, str, int]]) -> float:
        links = links_at(self._network, self._t, self._plan.streams, self._faults.partitions)
        return transfers_s(links, sends)

    def _leave(self, src: str, dst: str, n_bytes: float) -> None:
        """What goes from one region to another is paid for."""
        if self._region[src] != self._region[dst]:
            _add(self._result.egress_bytes, self._region[src], n_bytes)

    # ---- losses

    def _lose(self, loss: Loss) -> None:
        """Go on after a loss, with whoever is there or as soon as enough are; end as the coordinator does,
        where a step does not end and nobody is to blame, or too few come in time."""
        self._t = loss.at_s
        if loss.overdue and not loss.ended and self._overdue_at == self._done:
            self._end(ExitCode.STALLED, f"{loss.why}, for the second time")
            return
        self._say(loss.why)
        self._steps_s, self._known, self._ahead = (), None, None
        if loss.overdue:
            self._overdue_at = self._done
        for name in loss.ended:
            self._back_s[name] = loss.at_s + self._options.restart_s
            self._crashes.discard((self._plan.devices.index(name), self._done))
        while isinstance(found := self._ways_on(loss), Gather):
            comes_s = min([self._presence.next_arrival_s(self._t), *self._still_away()])
            give_up_s = loss.at_s + self._options.wait_for_workers_s
            if comes_s == inf or comes_s > give_up_s:
                self._t = self._t if give_up_s == inf else give_up_s
                self._end(ExitCode.WORKER_LOST, f"{found.reason}; nobody came")
                return
            self._t = comes_s
        self._go_on(found)

    def _ways_on(self, loss: Loss) -> GoOn | Gather:
        """What the core says of those who are here now. Who went in between has nothing any more."""
        running, here = self._plan, self._here()
        gone_since = (n for n in here if self._presence.left_between(n, loss.at_s, self._t))
        kept = set(here) - {*loss.ended, *gone_since}
        now, version = self._measured(here), running.version + 1
        try:
            planned: Plan | str = self._planner(now.topology, here, version)
        except PlanError as e:
            planned = str(e)
        return recover(self._standing(here, sorted(kept)), planned, now, version)

    def _here(self) -> list[str]:
        return [n for n in self._presence.at(self._t) if self._back_s.get(n, -inf) <= self._t]

    def _still_away(self) -> list[float]:
        return [t for t in self._back_s.values() if t > self._t]

    def _go_on(self, found: GoOn) -> None:
        """With the step that is left to do, under the plan that was found."""
        besides_s = self._options.restart_s if found.from_checkpoint else self._options.settle_s
        self._result.recoveries += 1
        self._result.restarts += found.from_checkpoint
        self._result.steps_lost += self._done - found.step
        if found.from_checkpoint:
            self._copies.only_of(())
        del self._result.steps[found.step :]
        self._done = found.step
        self._move(found, besides_s)

    def _end(self, code: ExitCode, reason: str) -> None:
        self._result.code, self._result.reason = code, reason
        self._say(reason)

    def _say(self, text: str) -> None:
        self._result.events.append(RunEvent(self._t, text))


def _add(amounts: dict[str, float], name: str, more: float) -> None:
    amounts[name] = amounts.get(name, 0.0) + more

"""A whole run: steps one after the other while the network moves, devices come and go, and plans change.

What follows from a loss is decided by the code that decides it in a real run (`scheduler/recovery.py`):
who takes whose place, from whom layers come, whether all go back to the checkpoint. Layers travel over the
network as it is then. A worker that comes back waits for the next plan. Draws nothing: chance is in the
faults and the network that are given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf

from scheduler.cost import durations
from scheduler.exit_codes import ExitCode
from scheduler.layer_sources import holdings_of, loading_s
from scheduler.liveness import remember
from scheduler.plan import Plan, PlanError
from scheduler.recovery import Gather, GoOn, Standing, recover
from scheduler.replan import Measured, Patience, Stay, reconsider
from scheduler.timeline import Timeline
from scheduler.topology import Topology
from scheduler.traffic import traffic
from scheduler.units import duration
from sim.faults import Faults
from sim.losses import Loss, Step, first_loss
from sim.network import NetworkOverTime
from sim.presence import Presence
from sim.replay import Work, links_at, replay_at, require_devices

Planner = Callable[[Topology, Sequence[str], int], Plan]
"""(links of the moment, devices that are there, version) -> a plan; PlanError if there is none."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    steps: int
    tokens_a_step: int
    start_s: float = 0.0
    """Moment of the network's clock at which the first step begins."""
    save_every: int = 50
    """Steps between checkpoints; 0: none before the end."""
    settle_s: float = 5.0
    """From a loss that is noticed to the first step under a new plan, beside the layers' way: stop, plan,
    build the stages anew, connect."""
    restart_s: float = 60.0
    """The same where layers come from the checkpoint, and what a process that died takes to be there again:
    start, profile, load."""
    replan_every: int = 0
    """Steps after which links are measured and a plan for them is made; 0: only when devices are lost."""
    patience: Patience = field(default_factory=lambda: Patience(steps_redone=0.0))
    """How much better, and how often in a row, that plan must look to be taken (`scheduler/replan.py`)."""
    deadline_s: float = inf
    """Moment at which the run is given up."""


@dataclass(frozen=True, slots=True)
class StepDone:
    step: int
    start_s: float
    duration_s: float
    plan_version: int


@dataclass(frozen=True, slots=True)
class RunEvent:
    """Something that happened between steps, in words."""

    at_s: float
    text: str


@dataclass(slots=True)
class RunResult:
    """`steps` are those that count: one that was done again stands here once, as it was done last."""

    steps: list[StepDone] = field(default_factory=list)
    events: list[RunEvent] = field(default_factory=list)
    plans: list[Plan] = field(default_factory=list)
    timelines: list[Timeline] = field(default_factory=list)
    """One a plan: its first step."""
    start_s: float = 0.0
    end_s: float = 0.0
    tokens: int = 0
    recoveries: int = 0
    """Losses after which the run went on; `restarts` of them from a checkpoint."""
    restarts: int = 0
    steps_lost: int = 0
    device_s: dict[str, float] = field(default_factory=dict)
    """By device: seconds in which it held a rank, or was made ready to."""
    egress_bytes: dict[str, float] = field(default_factory=dict)
    """By region: what left it for others, steps that were lost included."""
    code: ExitCode = ExitCode.OK
    reason: str = "all steps are done"

    @property
    def total_s(self) -> float:
        return self.end_s - self.start_s

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.total_s if self.total_s > 0 else 0.0


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
        self._presence = Presence(self._region, faults, coordinator=self._region[plan.device(0)])
        self._t = options.start_s
        self._done = self._saved = 0
        self._crashes = set(faults.crashes)
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
        step = Step(plan, self._done, self._t, took_s, self._steps_s)
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
        every = self._options.replan_every
        if every and self._done % every == 0 and self._done < self._options.steps:
            self._replan(plan)

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
        self._plan, self._streak = plan, 0
        self._result.plans.append(plan)
        w = self._work
        costs = durations(plan, w.model, w.profiles, self._network.topology(self._t))
        self._egress_bytes: dict[str, float] = {}
        for (a, b), n_bytes in traffic(plan, costs).items():
            src, dst = self._region[plan.device(a)], self._region[plan.device(b)]
            if src != dst:
                _add(self._egress_bytes, src, n_bytes)

    def _replan(self, plan: Plan) -> None:
        names = self._here()
        topology = self._network.topology(self._t)
        try:
            new = self._planner(topology, names, plan.version + 1)
        except PlanError:
            return
        w = self._work
        now = Measured(w.model, [p for p in w.profiles if p.device in names], topology)
        options = self._options
        answer = reconsider(plan, new, now, self._done, options.steps, self._streak, options.patience)
        if isinstance(answer, Stay):
            self._streak = answer.streak
            return
        self._say(f"plan {new.version}: {answer.reason}")
        self._t += answer.cost.seconds
        self._take(answer.plan)

    # ---- losses

    def _lose(self, loss: Loss) -> None:
        """Go on after a loss, with whoever is there or as soon as enough are."""
        self._t = loss.at_s
        self._say(loss.why)
        self._steps_s, self._known = (), None
        if loss.crashed:
            self._back_s[loss.crashed] = loss.at_s + self._options.restart_s
            self._crashes.discard((self._plan.devices.index(loss.crashed), self._done))
        while isinstance(found := self._ways_on(loss), Gather):
            comes_s = min([self._presence.next_arrival_s(self._t), *self._still_away()])
            if comes_s == inf:
                self._end(ExitCode.NO_PLAN, found.reason)
                return
            self._t = comes_s
        self._go_on(found)

    def _ways_on(self, loss: Loss) -> GoOn | Gather:
        """What the core says of those who are here now. Who went in between has nothing any more, and nobody
        has after a run that was given up."""
        running, t_s, w = self._plan, self._t, self._work
        here = self._here()
        kept = [n for n in here if n != loss.crashed and not self._presence.left_between(n, loss.at_s, t_s)]
        topology = self._network.topology(t_s)
        version = running.version + 1
        try:
            planned: Plan | str = self._planner(topology, here, version)
        except PlanError as e:
            planned = str(e)
        now = Measured(w.model, [p for p in w.profiles if p.device in here], topology)
        holdings = {} if loss.stalled else holdings_of(running, self._done, kept)
        saved = self._saved or None
        standing = Standing(running, tuple(here), holdings, self._done, self._options.steps, saved)
        return recover(standing, planned, now, version)

    def _here(self) -> list[str]:
        return [n for n in self._presence.at(self._t) if self._back_s.get(n, -inf) <= self._t]

    def _still_away(self) -> list[float]:
        return [t for t in self._back_s.values() if t > self._t]

    def _go_on(self, found: GoOn) -> None:
        """Layers travel from those who hold them, over the links as they are now."""
        links = links_at(self._network, self._t, found.plan.streams, self._faults.partitions)
        took_s = loading_s(found.sources, self._work.model, links)
        took_s += self._options.restart_s if found.from_checkpoint else self._options.settle_s
        self._result.recoveries += 1
        self._result.restarts += found.from_checkpoint
        self._result.steps_lost += self._done - found.step
        del self._result.steps[found.step :]
        self._done = found.step
        self._say(f"plan {found.plan.version}: {found.reason}; ready in {duration(took_s)}")
        self._t += took_s
        self._take(found.plan)
        self._hold(found.plan, took_s)

    def _end(self, code: ExitCode, reason: str) -> None:
        self._result.code, self._result.reason = code, reason
        self._say(reason)

    def _say(self, text: str) -> None:
        self._result.events.append(RunEvent(self._t, text))


def _add(amounts: dict[str, float], name: str, more: float) -> None:
    amounts[name] = amounts.get(name, 0.0) + more

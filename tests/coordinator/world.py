"""A pure world around the state machine: workers that answer commands, a clock that is a number.

`World.feed` hands one event to `handle`; `World.answer` lets one worker obey its oldest command;
`World.settle` lets all obey until nothing is left. Every command ever given is kept, in order. What each
worker really holds of the model is kept too, and nobody is told to take a layer from where it is not.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import replace
from itertools import pairwise

from coordinator import commands as c
from coordinator import events as e
from coordinator.planning import topology_of
from coordinator.records import OVER, Options, Restore, State, TakenUp, Transition
from coordinator.state import handle, start
from protos.convert import PeerInfo
from scheduler.checkpoint_layout import LayerFileInfo, weights_file
from scheduler.neighbours import arrange
from scheduler.plan import Plan
from scheduler.profile import DeviceProfile, LayerProfile
from scheduler.recovery import Gather, GoOn, adopt, recover
from scheduler.replan import Measured
from scheduler.topology import Device

from .shadows import Shadows, a_following

N_LAYERS = 4
LAYERS = tuple(LayerProfile(f"layer{i}", 1e9, 2e9, 1000, 4096, 8192, 2000) for i in range(N_LAYERS))
OPTIONS = Options(
    steps=12,
    global_batch=8,
    micro_batch=2,
    sequence_length=16,
    n_layers=N_LAYERS,
    eval_every=6,
    save_every=4,
    min_workers=2,
)


def line_plan(version: int, workers: list[str], replicas: int = 1) -> Plan:
    """`workers` in order as pipelines; layers cut evenly."""
    stages = len(workers) // replicas
    cuts = [N_LAYERS * i // stages for i in range(stages + 1)]
    return Plan(
        version=version,
        placement=tuple(tuple(workers[r * stages : (r + 1) * stages]) for r in range(replicas)),
        partition=tuple(pairwise(cuts)),
        micro_batches=(4 // replicas,) * replicas,
        schedule="1f1b",
        micro_batch=2,
        predicted_step_s=1.0,
    )


def a_file(layer: int, step: int) -> LayerFileInfo:
    return LayerFileInfo(weights_file(layer), f"{layer:032x}{step:032x}", 100 + layer)


class World:
    def __init__(
        self,
        options: Options = OPTIONS,
        restore: Restore | None = None,
        *,
        replicas: int = 1,
        least: int = 1,
        taken_up: TakenUp | None = None,
    ) -> None:
        """`least`: workers that the planner wants."""
        self.least = least
        self.state: State = start(options, restore, taken_up, taken_up.plan.version if taken_up else 0)
        self.now = 0.0
        self.replicas = replicas
        self.waiting: dict[str, deque[c.WorkerCommand]] = defaultdict(deque)
        self.todo: dict[str, deque[tuple[int, int]]] = defaultdict(deque)
        """By worker: (plan, step) it was told to run, the first of which it has voted for."""
        self.has: dict[str, dict[int, int]] = defaultdict(dict)
        """By worker: layer -> the steps it has seen."""
        self.copy_at: dict[str, int] = {}
        self.kept: dict[str, dict[int, set[int]]] = defaultdict(dict)
        """By worker: step -> layers that it has copies of."""
        self.running: dict[str, Plan] = {}
        """By worker: the plan that it took last."""
        self.shadows = Shadows()
        self.given: list[c.Command] = []
        self.reasons: list[str] = []
        self.plan_request: c.MakePlan | None = None
        self.look: c.Reconsider | None = None
        self.manifest: c.WriteManifest | None = None

    # ---- driving

    def feed(self, event: e.Event, *, after_s: float = 0.01) -> Transition:
        self.now += after_s
        transition = handle(self.state, event, self.now)
        self.state = transition.state
        self.given += transition.commands
        self.reasons.append(transition.reason)
        for command in transition.commands:
            if isinstance(command, c.Order):
                self.waiting[command.worker].append(command.body)
            elif isinstance(command, c.MakePlan):
                self.plan_request = command
            elif isinstance(command, c.Reconsider):
                self.look = command
            elif isinstance(command, c.WriteManifest):
                self.manifest = command
            elif isinstance(command, c.Evict):
                self.waiting.pop(command.worker, None)
                self.todo.pop(command.worker, None)
                self.has.pop(command.worker, None)
                self.kept.pop(command.worker, None)
                self.running.pop(command.worker, None)
                self.shadows.end(command.worker)
        return transition

    def join(self, *names: str, incarnation: str = "1", host: str = "") -> None:
        for name in names:
            self.feed(self.a_join(name, incarnation, host))
            self.feed(e.Connected(name))

    def a_join(self, name: str, incarnation: str = "1", host: str = "") -> e.Join:
        device = Device(name, host=host or name, memory_bytes=1 << 30)
        return e.Join(device, incarnation, f"session-{name}-{incarnation}", PeerInfo(name, f"{name}:1"))

    def answer(self, worker: str) -> c.WorkerCommand:
        """`worker` obeys the oldest command it was given; a commit with what follows, if no vote does."""
        body = self.waiting[worker].popleft()
        match body:
            case c.Profile():
                ones = (1.0,) * N_LAYERS
                profile = DeviceProfile(worker, ones, ones, ones)
                self.feed(e.Profiled(worker, LAYERS, profile, "data", 100, 10))
            case c.MeasureLinks(peers):
                links = tuple(e.LinkSample(p.name, 0.05, 1e7) for p in peers)
                self.feed(e.LinksMeasured(worker, links))
            case c.TakePlan():
                self._take(worker, body)
            case c.RunSteps(version, first, stop):
                if body.copy_step:
                    self.copy_at[worker] = body.copy_step
                    kept = self.kept[worker]
                    self.kept[worker] = {s: x for s, x in kept.items() if s == body.copy_keeps}
                own = self._own(worker)
                self.has[worker] = {i: n for i, n in self.has[worker].items() if i in own}
                idle = not self.todo[worker]
                self.todo[worker].extend((version, step) for step in range(first, stop))
                if idle:
                    self._vote(worker)
            case c.Commit():
                if self.todo[worker] and self.todo[worker][0] == (body.plan_version, body.step):
                    self.todo[worker].popleft()
                    for layer in self._own(worker):
                        assert self.has[worker][layer] == body.step, "it did the step before"
                        self.has[worker][layer] += 1
                    self._copy(worker, body.step + 1)
                    self._pass_on()
                    self._vote(worker)
                    if not self.todo[worker] and self.waiting[worker]:
                        return self.answer(worker)
            case c.Evaluate(step):
                self.feed(
                    e.Evaluated(worker, step, 20.0, 10)
                    if self.is_last(worker)
                    else e.Evaluated(worker, step, 0.0, 0)
                )
            case c.Save(step):
                files = tuple(a_file(i, step) for i in self.layers_of(worker))
                for f in files:
                    self.feed(e.LayerStored(step, f))
                self.feed(e.Saved(worker, step, files))
            case c.AbortPlan():
                self.todo[worker].clear()
            case c.Follow():
                gives = any(f.donor == worker for f in body.feeds)
                running = self.running.get(worker)
                if not gives or (running is not None and running.version == body.plan_version):
                    self.shadows.begin(worker, body)
                self._pass_on()
            case c.Meet():
                self.shadows.meet(worker, body)
                self._pass_on()
            case c.Unfollow(version):
                self.shadows.end(worker, version)
            case c.Stop():
                if self.state.phase not in OVER:
                    self.feed(e.Disconnected(worker, "it was stopped"))
        return body

    def _pass_on(self) -> None:
        """Layers that are followed come further, and are compared."""
        for event in list(self.shadows.events(self.has)):
            self.feed(event)

    def _copy(self, worker: str, step: int) -> None:
        """Copy its layers if it was told to; who keeps them for others says so once they are there."""
        if self.copy_at.get(worker) != step:
            return
        self.kept[worker].setdefault(step, set()).update(self._own(worker))
        pairs = [(k.holder, k.keeper) for k in self.state.keepers]
        for keeper in dict.fromkeys(k for _, k in pairs):
            holders = [h for h, k in pairs if k == keeper]
            if all(step in self.kept[n] for n in (keeper, *holders)):
                version = self.running[keeper].version
                for holder in holders:
                    self.kept[keeper][step].update(self._own(holder))
                self.feed(e.Copied(keeper, version, step))

    def _own(self, worker: str) -> range:
        """The layers of its stage in the plan that it took last."""
        plan = self.running.get(worker)
        rank = plan.rank_of_device(worker) if plan else None
        return range(0) if plan is None or rank is None else range(*plan.partition[plan.stage_of(rank)])

    def _take(self, worker: str, take: c.TakePlan) -> None:
        self.todo[worker].clear()
        self.running[worker] = take.plan
        followed = self.shadows.at(worker, take.step)
        self.shadows.end(worker)
        if take.sources and take.step in self.kept[worker]:
            old = self.kept[worker][take.step]
            if not all(n == take.step for n in self.has[worker].values()):
                self.has[worker] = dict.fromkeys(old, take.step)
        if take.sources or take.serves:
            self.has[worker] |= followed
        for source in take.sources:
            for donor in source.donors:
                # A donor has obeyed what came before its own TakePlan by the time it serves.
                queue = self.waiting[donor] if donor != worker else deque()
                while queue and not isinstance(queue[0], c.TakePlan):
                    self.answer(donor)
                if donor not in self.state.members:
                    return  # it is lost while it serves: whoever waits for it is told to stop
                there = self.has[donor].get(source.layer) == take.step
                there |= source.layer in self.shadows.at(donor, take.step)
                copied = source.layer in self.kept[donor].get(take.step, ())
                assert there or copied, f"{donor} lacks layer {source.layer}"
            self.has[worker][source.layer] = take.step
        if take.plan.rank_of_device(worker) is None:
            return  # it serves
        if not take.sources:
            self.has[worker] = dict.fromkeys(self._own(worker), take.step)
        self.feed(e.Ready(worker, take.plan.version))

    def forget(self, worker: str) -> None:
        """`worker` obeys nothing of what it was given but commits."""
        self.waiting[worker] = deque(x for x in self.waiting[worker] if isinstance(x, c.Commit))

    def _vote(self, worker: str) -> None:
        """For the first step that it was told to run and that is not committed."""
        if self.todo[worker]:
            version, step = self.todo[worker][0]
            self.feed(self.a_step(worker, step, version))

    def answer_shell(self) -> bool:
        """Make a plan, or write a manifest, if one is asked for."""
        if self.plan_request is not None:
            request, self.plan_request = self.plan_request, None
            self.feed(self._planned(request))
            return True
        if self.manifest is not None:
            step, self.manifest = self.manifest.step, None
            self.feed(e.ManifestWritten(step))
            return True
        return False

    def reconsider(self, moves: bool = True, follows: bool = False) -> c.Reconsider:
        """Answer the look for a faster plan: all who are there in a line, or stay."""
        assert self.look is not None
        asked, self.look = self.look, None
        names = [d.name for d in asked.request.devices]
        able = len(names) // self.replicas * self.replicas
        plan = line_plan(asked.request.version, names[:able], self.replicas) if moves else None
        way = a_following(asked.running, plan) if follows and plan is not None else None
        why = "it is faster" if moves else "it is not"
        self.feed(e.Reconsidered(asked.running.version, plan, 0, why, way))
        return asked

    def _planned(self, request: c.MakePlan) -> e.Event:
        names = [d.name for d in request.devices]
        able = len(names) // self.replicas * self.replicas
        why = f"{self.least} workers are required"
        plan = line_plan(request.version, names[:able], self.replicas) if able >= self.least else None
        if request.standing is None:
            return self._to_take(request, plan) if plan else e.PlanFailed(request.version, why)
        measured = Measured(request.model, request.profiles, topology_of(request))
        if request.chosen is not None:
            chosen = replace(request.chosen[0], version=request.version)
            way = adopt(request.standing, chosen, measured, request.chosen[1])
            return self._to_take(request, chosen, way)
        found = recover(request.standing, plan or why, measured, request.version)
        if isinstance(found, Gather):
            return e.PlanFailed(request.version, found.reason)
        return self._to_take(request, found.plan, found)

    def _to_take(self, request: c.MakePlan, plan: Plan, way: GoOn | None = None) -> e.Planned:
        wanted = self.state.options.neighbours_every > 0
        found = arrange(plan, request.model, topology_of(request)).keepers if wanted else ()
        return e.Planned(plan, way, found)

    def settle(self, *, until: str = "", limit: int = 10_000) -> None:
        """Let everybody obey until nothing is left, or the phase is `until`."""
        for _ in range(limit):
            if until and self.state.phase == until:
                return
            busy = [w for w, queue in self.waiting.items() if queue]
            if busy:
                self.answer(busy[0])
            elif not self.answer_shell():
                return
        raise AssertionError(f"did not settle; phase {self.state.phase}")

    # ---- a coordinator that is killed

    def restarted(self, manifest_arrived: bool = True) -> World:
        """Another coordinator over what this one, killed now, has written down; nobody is back yet.

        `manifest_arrived`: whether the manifest that was being written is there.
        """
        steps, plans = self.steps(), self._plans()
        restore = self.state.checkpoint
        if self.manifest is not None and manifest_arrived:
            m = self.manifest
            restore = Restore(m.step, m.files, m.eval_loss, m.loss)
        taken_up = None
        if steps and (restore is None or len(steps) >= restore.step):
            taken_up = TakenUp(plans[steps[-1].plan_version], len(steps), steps[-1].grad_norm)
        again = World(
            self.state.options, restore, replicas=self.replicas, least=self.least, taken_up=taken_up
        )
        again.state = replace(again.state, plan_version=max(plans, default=0))
        again.now, again.running = self.now, dict(self.running)
        again.given = [*self.given, c.Rewind(again.state.done, "the coordinator was started again")]
        for name, has in self.has.items():
            again.has[name] = dict(has)
            if steps and self.todo[name] and self.todo[name][0] == (steps[-1].plan_version, steps[-1].step):
                # It has voted and may not have heard: the reply to its joining says so, and it does the step.
                again.has[name] |= dict.fromkeys(self._own(name), steps[-1].step + 1)
        return again

    def come_back(self, name: str) -> None:
        """`name` joins again, and says what it holds if it has all of its stage."""
        self.join(name)
        steps = {self.has[name].get(layer) for layer in self._own(name)}
        step = next(iter(steps)) if len(steps) == 1 else None
        if step is not None:
            own = self._own(name)
            self.feed(e.Holds(name, step, own.start, own.stop))

    def _plans(self) -> dict[int, Plan]:
        """By version, those that were told to anybody."""
        told = [x.body.plan for x in self.given if isinstance(x, c.Order) and isinstance(x.body, c.TakePlan)]
        return {p.version: p for p in told}

    # ---- looking

    @property
    def phase(self) -> str:
        return self.state.phase

    def is_last(self, worker: str) -> bool:
        plan = self.state.plan
        rank = plan.rank_of_device(worker) if plan else None
        return plan is not None and rank is not None and plan.stage_of(rank) == plan.n_stages - 1

    def layers_of(self, worker: str) -> range:
        """Layers that `worker` saves: its stage's, if it is of replica 0."""
        plan = self.state.plan
        rank = plan.rank_of_device(worker) if plan else None
        if plan is None or rank is None or plan.replica_of(rank) > 0:
            return range(0)
        return range(*plan.partition[plan.stage_of(rank)])

    def a_step(self, worker: str, step: int, version: int | None = None) -> e.StepVote:
        """Loss 10/(step+1) a token over 32 tokens of each last stage."""
        last = self.is_last(worker)
        tokens = 32 if last else 0
        version = self.state.plan_version if version is None else version
        return e.StepVote(worker, version, step, tokens * 10.0 / (step + 1), tokens, (0.25,), 0.5, 100, 200)

    def of(self, kind: type[c.Command]) -> list[c.Command]:
        return [x for x in self.given if isinstance(x, kind)]

    def steps(self) -> list[c.RecordStep]:
        """Those that count."""
        found: list[c.RecordStep] = []
        for x in self.given:
            if isinstance(x, c.RecordStep):
                found.append(x)
            elif isinstance(x, c.Rewind):
                del found[x.step :]
        return found

    def manifests(self) -> list[c.WriteManifest]:
        return [x for x in self.given if isinstance(x, c.WriteManifest)]

    def orders(self, worker: str) -> list[c.WorkerCommand]:
        return [x.body for x in self.given if isinstance(x, c.Order) and x.worker == worker]


def with_options(**changes: object) -> Options:
    return replace(OPTIONS, **changes)  # type: ignore[arg-type]


def running(world: World | None = None, *names: str) -> World:
    w = world or World()
    w.join(*(names or ("a", "b")))
    w.settle(until="running")
    return w


def at_step(w: World, step: int) -> World:
    while w.state.done < step:
        busy = [x for x, q in w.waiting.items() if q]
        if busy:
            w.answer(busy[0])
        else:
            w.answer_shell()
    return w

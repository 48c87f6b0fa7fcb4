"""Carries out what the state machine decides: one loop, one state, no decision of its own.

Everything runs on the event loop of one thread; planning and flushing to disk go to threads and
come back as events. Knows sessions only as queues of commands; gRPC is `service.py`'s.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from protos.log_lines import finite
from scheduler.checkpoint_layout import Manifest
from scheduler.departures import Departure
from scheduler.exit_codes import ExitCode
from scheduler.job import JobSpec, job_to_json
from scheduler.lease import LEASE_S, RENEWALS
from scheduler.link_use import LinkUse
from scheduler.replan import Move, Patience, Stay
from scheduler.timeline import Span

from . import events as e
from .checkpoints import CheckpointError
from .commands import (
    Admit,
    Command,
    DiscardSave,
    Evict,
    Finish,
    MakePlan,
    Order,
    Reconsider,
    RecordCheck,
    RecordConduct,
    RecordEval,
    RecordStep,
    Refuse,
    Rewind,
    WorkerCommand,
    WriteManifest,
)
from .data_keys import DataKeys
from .database import DatabaseError
from .drive import recorded_steps
from .links import LinksFile
from .measurements import keep_measurements
from .planning import (
    BETWEEN_STEPS,
    Planner,
    Planning,
    describe,
    following_to,
    go_on,
    look,
    with_checks,
    with_keepers,
)
from .records import OVER, State
from .resume import OpenRun
from .state import handle
from .store import Store, Superseded
from .telling import changes
from .timelines import Timelines, link_event, use_event
from .watching import Watching

Say = Callable[[dict[str, Any]], None]
TICK_S = 0.5
MAX_QUEUED = 4096
"""Commands that wait for a worker to take them; a worker that takes none is lost."""


@dataclass(slots=True)
class Line:
    """The way to one member: its commands wait here until its stream takes them. None ends the stream."""

    worker: str
    queue: asyncio.Queue[WorkerCommand | None] = field(default_factory=lambda: asyncio.Queue(MAX_QUEUED))
    open: bool = False


class Driver:
    """The run: its state, its lines to the workers, its records."""

    def __init__(
        self,
        job: JobSpec,
        opened: OpenRun,
        state: State,
        planner: Planner,
        say: Say,
        patience: Patience = BETWEEN_STEPS,
        lease_s: float = LEASE_S,
    ) -> None:
        self.job = job
        self.run = opened.run
        self.state = state
        self.opened = opened
        self.planning: Planning | None = None
        self.lines: dict[str, Line] = {}
        """By session id."""
        self.finished = asyncio.Event()
        self.timelines = Timelines(opened.state_dir)
        self.watching: Watching | None = None
        self.superseded = ""
        """'' or why this coordinator may drive the run no more."""
        self._lease_s = lease_s
        self._renewed_s = time.monotonic()
        self._planner, self._patience = planner, patience
        self._say = say
        self._tasks: set[asyncio.Task[None]] = set()
        self._began_s = time.monotonic()
        self._tokens = 0
        self._keys = DataKeys()
        self._links = LinksFile(opened.state_dir)
        self._keeping = asyncio.Lock()
        self.memory_used_bytes: dict[str, int] = {}
        """Of each worker, as it last said; 0: it does not know."""

    # ---- events in

    def apply(self, event: e.Event) -> list[Refuse]:
        """Handle one event and carry out what follows. Returns the refusals, for whoever asked to join."""
        if self.superseded:
            return []  # whoever drives the run now is told of it by the workers themselves
        before = self.state
        transition = handle(before, event, time.monotonic())
        self.state = transition.state
        self._admit(event)
        refused = [c for c in transition.commands if isinstance(c, Refuse)]
        for command in transition.commands:
            if self.superseded:  # what is not written down is told to nobody
                return refused
            self._carry_out(command)
        self._tell_changes(before, event, transition.reason)
        return refused

    def visit(self, key: bytes) -> None:
        """Have the workers answer probes of this key for a while."""
        self._keys.visit(key, time.monotonic())
        self.apply(e.Tick())

    def _admit(self, event: e.Event) -> None:
        """Tell workers whose connections to take, before anybody is told to connect."""
        members = self.state.members
        changed = self._keys.news(members, time.monotonic())
        who = members if changed else [event.worker] if isinstance(event, e.Connected) else []
        if changed or self._keys.told:
            for worker in who:
                self._order(worker, Admit(self._keys.told))

    def join(self, event: e.Join) -> Refuse | None:
        """Take a worker in, or say why not."""
        if self.superseded:
            return Refuse(ExitCode.SUPERSEDED, f"this coordinator drives the run no more: {self.superseded}")
        refused = self.apply(event)
        if refused:
            self.tell(
                "refused",
                name=event.device.name,
                reason=refused[0].reason,
                code=int(refused[0].code),
                departure=int(Departure.REFUSED),
                why=Departure.REFUSED.words,
            )
            return refused[0]
        self.lines[event.session] = Line(event.device.name)
        return None

    def connect(self, session: str) -> Line | None:
        """The member's stream is open; None if the session is not one, or its stream is open already."""
        line = self.lines.get(session)
        member = self.state.members.get(line.worker) if line else None
        if line is None or line.open or member is None or member.session != session:
            return None
        line.open = True
        self.apply(e.Connected(line.worker))
        return line

    def disconnect(self, session: str, reason: str) -> None:
        """The member's stream has ended."""
        line = self.lines.pop(session, None)
        member = self.state.members.get(line.worker) if line else None
        if line is not None and member is not None and member.session == session:
            self.apply(e.Disconnected(line.worker, reason))

    def worker_of(self, session: str) -> str | None:
        """The member whose session this is."""
        line = self.lines.get(session)
        return line.worker if line else None

    async def tick(self) -> None:
        """Let time pass until the run is over."""
        while not self.finished.is_set():
            began_s = time.monotonic()
            await asyncio.sleep(TICK_S)
            over_s = time.monotonic() - began_s - TICK_S
            if over_s > TICK_S:  # what workers sent meanwhile is not read yet
                self.apply(e.Overslept(over_s))
            self._renew()
            self.apply(e.Tick())

    def _renew(self) -> None:
        if self.opened.store.lease is None or time.monotonic() - self._renewed_s < self._lease_s / RENEWALS:
            return
        self._renewed_s = time.monotonic()
        self._keep(lambda store, now_s: store.renew_lease(now_s, self._lease_s))

    async def settle(self, grace_s: float) -> None:
        """Wait, at most `grace_s`, for records to be written and workers to leave."""
        deadline = time.monotonic() + grace_s
        while (self._tasks or any(x.open for x in self.lines.values())) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)

    # ---- commands out

    def _carry_out(self, command: Command) -> None:
        match command:
            case Order(worker, body):
                self._order(worker, body)
            case MakePlan():
                self._spawn(self._plan(command))
            case Reconsider():
                self._spawn(self._reconsider(command))
            case Rewind(step, reason):
                self._keep(lambda store, now_s: store.rewind(step, reason, now_s))
            case RecordStep():
                self._record_step(command)
            case RecordConduct():
                self._keep(lambda store, now_s: store.conduct(command, now_s))
            case RecordCheck(check, worker, errors, verdict, reason):
                self.tell(
                    "check" if verdict == "agree" else "disagreement", step=check.step, stage=check.stage,
                    replica=check.replica, micro_batch=check.micro_batch, name=worker,
                    errors=finite(dict(errors)), verdict=verdict, reason=reason,
                )  # fmt: skip
            case RecordEval():
                self._keep(lambda store, now_s: store.evaluation(command, now_s))
                self.tell("eval", step=command.step, eval_loss=command.loss, tokens=command.tokens)
            case WriteManifest():
                self._spawn(self._write_manifest(command))
            case DiscardSave(step):
                self.opened.checkpoints.discard(step)
            case Evict(worker, reason, code):
                self._evict(worker, reason, code)
            case Finish(code, reason):
                self._finish(code, reason)
            case Refuse():
                pass  # the one who asked is told by the caller

    def _line(self, worker: str) -> Line | None:
        member = self.state.members.get(worker)
        return self.lines.get(member.session) if member else None

    def _order(self, worker: str, body: WorkerCommand) -> None:
        line = self._line(worker)
        if line is None:
            return
        try:
            line.queue.put_nowait(body)
        except asyncio.QueueFull:
            reason = f"it took none of {MAX_QUEUED} commands"
            asyncio.get_running_loop().call_soon(self.apply, e.Disconnected(worker, reason))

    def _evict(self, worker: str, reason: str, code: Departure) -> None:
        for line in self.lines.values():
            if line.worker == worker and not line.queue.full():
                line.queue.put_nowait(None)
        self.tell("left", name=worker, reason=reason, departure=int(code), why=code.words)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _make(self, request: MakePlan) -> Planning:
        if request.standing is None:
            planning = self._planner(self.job, request)
        else:
            planning = go_on(self.job, request, request.standing, self._planner)
        return with_checks(self.job, with_keepers(self.job, planning))

    async def _plan(self, request: MakePlan) -> None:
        try:
            planning = await asyncio.to_thread(self._make, request)
        except ValueError as error:
            self.apply(e.PlanFailed(request.version, str(error)))
            return
        except Exception as error:  # a defect in the planner must end the run, not hang it
            self.apply(e.PlanFailed(request.version, f"the planner broke: {type(error).__name__}: {error}"))
            raise
        if self.state.phase == "planning" and planning.plan.version == self.state.plan_version:
            self.planning = planning
            self.timelines.planned(planning)
            self.watching = Watching(planning.plan, planning.topology)
            self._spawn(self._keep_measured(planning))
            self._keep(lambda store, now_s: store.plan(planning.plan, now_s))
            self.tell("plan", **asdict(planning.plan))
            if self.state.options.dry_run:
                self.tell("description", text=await asyncio.to_thread(describe, planning))
            if planning.way is not None:
                way = planning.way
                self.tell("recovery", way=way.way, step=way.step, loading_s=way.loading_s, reason=way.reason)
        self.apply(e.Planned(planning.plan, planning.way, planning.keepers, planning.copying_s))

    async def _keep_measured(self, planning: Planning) -> None:
        """Beside the run, which does not need it: of many workers it takes seconds."""
        async with self._keeping:
            try:
                await asyncio.to_thread(keep_measurements, self.opened.state_dir, planning)
                await asyncio.to_thread(self._links.record, planning.request, time.time())
            except OSError as error:
                self.tell("warning", reason=f"what was measured could not be written down: {error}")

    async def _reconsider(self, asked: Reconsider) -> None:
        version, following = asked.running.version, None
        try:
            answer = await asyncio.to_thread(look, self.job, asked, self._planner, self._patience)
            if isinstance(answer, Move):
                following, how = await asyncio.to_thread(following_to, self.job, asked, answer.plan)
                answer = replace(answer, reason=f"{answer.reason} {how}")
        except Exception as error:  # the plan that runs is good: a defect costs the look, loudly
            answer = Stay(0, f"the look for a faster plan broke: {type(error).__name__}: {error}")
            self.tell("warning", reason=answer.reason)
        self.tell("outlook", step=asked.step, moves=isinstance(answer, Move), reason=answer.reason)
        match answer:
            case Move(plan):
                self.apply(e.Reconsidered(version, plan, 0, answer.reason, following))
            case Stay(streak, reason):
                self.apply(e.Reconsidered(version, None, streak, reason))

    async def _write_manifest(self, command: WriteManifest) -> None:
        manifest = Manifest(
            self.run, command.step, command.files, command.next_sample,
            job_to_json(self.job), command.loss, command.eval_loss,
        )  # fmt: skip
        keep = self.job.checkpoint
        store = self.opened.checkpoints
        try:
            n_bytes = await asyncio.to_thread(store.write_manifest, manifest)
        except CheckpointError as error:
            self.apply(e.SaveFailed(command.step, str(error)))
            return
        try:
            removed = await asyncio.to_thread(store.prune, keep.keep, keep.keep_best)
        except (CheckpointError, OSError) as error:  # the new one is safe; an old one stays too long
            removed = ()
            self.tell("warning", reason=f"old checkpoints were not removed: {error}")
        self.tell(
            "checkpoint",
            step=command.step,
            path=str(store.directory(command.step)),
            n_bytes=n_bytes,
            eval_loss=command.eval_loss,
            removed=list(removed),
        )
        self.apply(e.ManifestWritten(command.step))

    def _record_step(self, r: RecordStep) -> None:
        plan = self.state.plan
        predicted_s = plan.predicted_step_s if plan else 0.0
        if error := self._unwritten(lambda store, now_s: store.step(r, predicted_s, now_s)):
            # What is not written down is told to nobody: whoever is started with room does this step.
            self.state = replace(self.state, done=r.step)
            self._give_way(
                f"step {r.step} cannot be written down: {error}; make room for the state directory and start"
                " with --resume: workers that wait for it (--rejoin-timeout) have lost nothing",
                ExitCode.STATE_DIR,
            )
        if self.superseded:
            return
        self._tokens += r.tokens
        self.tell(
            "step",
            step=r.step + 1,
            steps=self.job.steps,
            loss=r.loss,
            tokens=r.tokens,
            tokens_per_s=self.tokens_per_s(r.tokens),
            step_s=self.state.steps_s[-1] if self.state.steps_s else r.duration_s,
            predicted_step_s=predicted_s,
            grad_norm=r.grad_norm,
            sent_bytes=r.sent_bytes,
            raw_bytes=r.raw_bytes,
        )

    def take_spans(self, step: int, rank: int, spans: tuple[Span, ...], links: tuple[LinkUse, ...]) -> None:
        """What one rank measured of a committed step that was to be recorded or watched."""
        if step not in recorded_steps(self.state):
            observed = self.watching.add(step, rank, spans) if self.watching else None
            if observed is not None:
                self.apply(observed)
            return
        recorded = self.timelines.add(step, rank, spans, links)
        plan = self.state.plan
        if recorded is None or plan is None:
            return
        self.tell(
            "use", step=step + 1, step_s=recorded.timeline.duration_s,
            workers=use_event(recorded.timeline, plan, self.memory_used_bytes),
        )  # fmt: skip
        if recorded.links:
            self.tell("links", step=step + 1, links=[link_event(x, plan) for x in recorded.links])

    def tokens_per_s(self, tokens: int) -> float:
        """Over the last steps, as the coordinator saw them commit."""
        recent = self.state.steps_s[-8:]
        return tokens * len(recent) / sum(recent) if sum(recent) > 0 else 0.0

    def silence_s(self, worker: str) -> float:
        """Seconds since the member was last heard of."""
        return max(0.0, time.monotonic() - self.state.members[worker].seen_s)

    def _finish(self, code: ExitCode, reason: str) -> None:
        ok = code is ExitCode.OK
        saved = self.opened.checkpoints.steps()
        phase = "finished" if ok else "failed"
        self._keep(lambda store, now_s: store.end_attempt(phase, code, reason, now_s))
        self.tell(
            phase,
            code=int(code),
            reason=reason,
            step=self.state.done,
            steps=self.job.steps,
            loss=self.state.loss,
            eval_loss=self.state.eval_loss,
            tokens=self._tokens,
            seconds=time.monotonic() - self._began_s,
            checkpoint=str(self.opened.checkpoints.directory(saved[-1])) if saved else None,
            state_dir=str(self.opened.state_dir),
        )
        self.finished.set()

    # ---- telling

    def _tell_changes(self, before: State, event: e.Event, reason: str) -> None:
        now = self.state
        if now.phase != before.phase and now.phase not in OVER:
            self._keep(lambda store, _: store.set_phase(now.phase, now.reason))
        for kind, fields in changes(before, now, event, reason):
            self.tell(kind, **fields)

    def tell(self, kind: str, **fields: Any) -> None:
        """Show an event, and keep it (steps and evaluations have tables of their own)."""
        if kind not in ("step", "eval"):
            self._keep(lambda store, now_s: store.event(kind, fields, now_s))
        self._say({"event": kind, **fields})

    def _keep(self, write: Callable[[Store, float], None]) -> None:
        """Write history. A disk that takes no more costs this history, loudly, and not the training."""
        if error := self._unwritten(write):
            self._say({"event": "warning", "reason": f"the history was not written: {error}"})

    def _unwritten(self, write: Callable[[Store, float], None]) -> DatabaseError | None:
        """Why the store did not take it, if it did not."""
        try:
            if not self.superseded:
                write(self.opened.store, time.time())
        except Superseded as error:
            self._give_way(str(error))
        except DatabaseError as error:
            return error
        return None

    def _give_way(self, reason: str, code: ExitCode = ExitCode.SUPERSEDED) -> None:
        """Let go of all workers, who look for whoever drives the run now or next."""
        self.superseded = reason
        self.state = replace(self.state, phase="failed", code=code, reason=reason)
        for line in self.lines.values():
            if not line.queue.full():
                line.queue.put_nowait(None)
        kind = "superseded" if code is ExitCode.SUPERSEDED else "gave_way"
        self._say({"event": kind, "code": int(code), "reason": reason, "step": self.state.done})
        self.finished.set()


def new_session() -> str:
    """An id that cannot be guessed."""
    return secrets.token_urlsafe(32)

"""What a worker does when it is told to: profile, measure links, take a plan, run steps, save.

One command after the other in one thread, apart from `abort`, which any thread may call. Decides
nothing about the run, and speaks to the coordinator only through what it is given.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from protos import orchestrator_pb2 as pb
from protos.convert import (
    file_from_message,
    file_to_message,
    link_use_to_message,
    plan_from_message,
    profiled_to_message,
    span_to_message,
)
from scheduler.checkpoint_layout import LayerFileInfo
from scheduler.dead_links import Pair, pairs_used
from scheduler.exit_codes import ExitCode
from scheduler.job import JobSpec
from scheduler.moving import transfer_deadline_s
from scheduler.plan import Plan
from scheduler.samples import step_samples
from scheduler.spot_checks import told_by
from worker.addresses import PeerAddress
from worker.ahead import Ahead
from worker.checkpoint import (
    LayerFileError,
    file_info,
    load_local,
    local_files,
    stage_files,
)
from worker.copies import Copies, Exchange, Kept
from worker.data import DataError, Dataset, open_dataset
from worker.device import LocalDevice
from worker.endpoint import DataEndpoint
from worker.faults import Reached, no_faults
from worker.held_layers import HeldLayer, HeldLayers
from worker.loading import (
    MAX_LAYER_BYTES,
    Serving,
    build_stage,
    fetched,
    load_checkpoint,
    load_from_peers,
)
from worker.model import Layer, ModelError
from worker.model_of_job import fresh_layers, model_of
from worker.optimizer import OptimizerStateError, StageOptimizer
from worker.outer import OuterOptimizer
from worker.own_links import OwnLinks
from worker.profiler import profile_model
from worker.residuals import load_residuals, residual_files
from worker.stage import Stage
from worker.step import Diverged, LinkCodecs, StepContext, run_eval, run_step
from worker.transport import PeerUnreachable, Transport, TransportAborted, TransportError
from worker.votes import Votes
from worker.ways import Ways

REACH_TIMEOUT_S = 10.0
ANY_PLAN = 1 << 62
RECEIVE_TIMEOUT_S = 600.0
"""A backstop: a lost peer is noticed by its heartbeats, and then the plan is aborted at once."""


class Files(Protocol):
    """Where a checkpoint's files go to and come from; blocks."""

    def put(self, step: int, name: str, data: bytes) -> None: ...
    def get(self, step: int, file: LayerFileInfo) -> bytes: ...


class Uploads(Exception):
    """The coordinator did not take a file of a checkpoint; the worker stays."""


class Runtime:
    """One worker's tensors. `handle` gives the event that answers a command, by way of `emit`."""

    def __init__(
        self,
        *,
        job: JobSpec,
        run: str,
        name: str,
        device: LocalDevice,
        endpoint: DataEndpoint,
        files: Files,
        data_dir: Path,
        cache_dir: Path,
        ways: Ways,
        streams: int,
        emit: Callable[[pb.Event], None],
        say: Callable[..., None],
        reached: Reached = no_faults,
    ) -> None:
        self._reached = reached
        self._job, self._run, self._name, self._device = job, run, name, device
        self._endpoint, self._files, self._ways, self._streams = endpoint, files, ways, streams
        self._emit, self._say = emit, say
        self._data_dir, self._cache_dir = data_dir, cache_dir
        self._dataset: Dataset | None = None
        self._context: StepContext | None = None
        self._stage: Stage | None = None
        self._optimizer: StageOptimizer | None = None
        self._outer: OuterOptimizer | None = None
        self._done = 0
        """Steps that the stage has seen."""
        self._held: HeldLayers | None = None
        self._copies = Copies()
        self._exchange: Exchange | None = None
        self._links = OwnLinks(name, endpoint, ways, streams, emit, self._link_failed)
        self._ahead = Ahead(name, self._open_beside, ways.address, self._layer, job.optimizer, emit)
        self._changing = threading.Lock()
        """Over what other threads reach: the open plan, and which plans are aborted."""
        self._transport: Transport | None = None
        self._votes: Votes | None = None
        self._aborted, self._aborted_version = "", -1

    # ---- any thread

    def abort(self, reason: str, plan_version: int = ANY_PLAN) -> None:
        """End what waits for a peer in this plan or an earlier one, now; also if it is yet to be taken."""
        with self._changing:
            if plan_version > self._aborted_version:
                self._aborted_version, self._aborted = plan_version, reason
            if self._votes is not None and self._votes.plan_version <= plan_version:
                self._abort_open(reason)

    def cut_off(self, reason: str) -> None:
        """The coordinator is away: end the plan that is open, but none that may come."""
        self._ahead.end()
        with self._changing:
            version = self._votes.plan_version if self._votes is not None else -1
        self.abort(reason, version)

    def _abort_open(self, reason: str) -> None:
        if self._transport is not None:
            self._transport.abort(reason)
        if self._votes is not None:
            self._votes.abort(reason)

    def commit(self, commit: pb.Commit) -> None:
        """All ranks have voted for the step."""
        with self._changing:
            votes = self._votes
        if votes is not None:
            votes.told(commit)

    def unfollow(self, version: int) -> None:
        """The coordinator has ended this following, or an earlier one. May wait for threads of its own."""
        self._ahead.end(version)

    def waits_for(self) -> int | None:
        """The rank whose tensor the thread of work is waiting for, if it is."""
        context = self._context
        return context.waiting.rank if context is not None else None

    # ---- the one thread of work

    def handle(self, command: pb.Command) -> None:
        """Obey one command; failures are told as events with their exit code."""
        try:
            self._obey(command)
        except TransportAborted:
            return  # whoever aborted knows why
        except (DataError, FileNotFoundError) as e:
            self._fail(ExitCode.DATA, e)
        except (ModelError, KeyError) as e:
            self._fail(ExitCode.MODEL, e)
        except PeerUnreachable as e:
            self._fail(ExitCode.PEER_UNREACHABLE, e)
        except (LayerFileError, OptimizerStateError) as e:
            self._fail(ExitCode.CHECKPOINT_CORRUPT, e)
        except Uploads as e:
            self._fail(ExitCode.CHECKPOINT_WRITE, e, fatal=False)
        except Diverged as e:
            self._fail(ExitCode.DIVERGED, e)
        except torch.cuda.OutOfMemoryError as e:
            self._fail(ExitCode.DEVICE, e)
        except TransportError as e:
            self._fail(ExitCode.WORKER_FAILED, e)

    def _fail(
        self, code: ExitCode, error: Exception, fatal: bool = True, peer: str = "", plan_version: int = 0
    ) -> None:
        reason = str(error)
        self._say("failed", code=int(code), reason=reason)
        failed = pb.Failed(code=int(code), reason=reason, fatal=fatal, peer=peer, plan_version=plan_version)
        self._emit(pb.Event(failed=failed))

    def _link_failed(self, error: PeerUnreachable, peer: str, plan_version: int) -> None:
        self._fail(ExitCode.PEER_UNREACHABLE, error, False, peer, plan_version)

    def _obey(self, command: pb.Command) -> None:
        match command.WhichOneof("body"):
            case "profile":
                self._profile()
            case "measure_links":
                self._links.measure(command.measure_links)
            case "take_plan":
                self._take_plan(command.take_plan)
            case "run_steps":
                self._run_steps(command.run_steps)
            case "follow":
                self._follow(command.follow)
            case "meet":
                running = self._context is not None
                self._ahead.meet(command.meet, self._layer_now if running else None)
            case "save":
                self._save(command.save.step)
            case "evaluate":
                self._evaluate(command.evaluate.step)
            case _:
                pass  # a later version's command that this one may ignore

    # ---- before a plan

    @property
    def dataset(self) -> Dataset:
        if self._dataset is None:
            job = self._job
            self._dataset = open_dataset(job.data, job.sequence_length, self._data_dir, self._cache_dir)
        return self._dataset

    def _profile(self) -> None:
        data = self.dataset
        model = model_of(self._job, data.vocab, self._data_dir)
        torch_device = self._device.torch_device
        layers, profile = profile_model(self._job, model, torch_device, self._name, time.perf_counter)
        message = profiled_to_message(layers, profile, data.digest, data.n_samples, data.n_eval)
        self._say("profiled", layers=len(layers), step_s=sum(profile.forward_s) + sum(profile.backward_s))
        self._emit(pb.Event(profiled=message))

    # ---- a plan

    def _take_plan(self, take: pb.TakePlan) -> None:
        followed = self._ahead.followed(take.step)
        self._ahead.end()
        self._leave_plan()
        if followed and (self._held is None or self._held.step == take.step):
            self._held = self._held or HeldLayers(take.step)
            self._held.layers |= followed  # also for the plan after this one, if this one is over already
        plan = plan_from_message(take.plan)
        if plan.version <= self._aborted_version:
            return  # it was over before it was begun
        ranks = {plan.device(r): r for r in range(plan.n_ranks)}
        ranks |= {name: plan.n_ranks + i for i, name in enumerate(take.guests)}
        if self._name not in ranks:
            self._say("idle", reason="the plan does without this worker")
            return
        if not take.sources and not take.serves:
            self._held = None  # the model is that of the checkpoint, or fresh
        elif self._held is None or self._held.step != take.step:
            self._held = self._copies.at(take.step) or self._held
        me = ranks[self._name]
        if not self._links.carry_again(take.peers, self._used(take, plan), plan.version):
            return
        transport = self._open(plan, me, take, ranks)
        serving = Serving(take, self._held, transport, me, ranks, self._serving_failed)
        if me < plan.n_ranks:
            self._load(plan, me, take, transport, ranks)
            self._emit(pb.Event(ready=pb.Ready(plan_version=plan.version, next_step=take.step)))
        serving.join()

    def _used(self, take: pb.TakePlan, plan: Plan) -> frozenset[Pair]:
        """The links that the plan uses, and its loading from here and to here."""
        used = pairs_used(plan, tied=True, checked=self._job.checks.every > 0)
        used |= {frozenset((self._name, p.to)) for p in take.serves}
        used |= {frozenset((self._name, d)) for s in take.sources for d in s.donors}
        return used

    def _open(self, plan: Plan, me: int, take: pb.TakePlan, ranks: Mapping[str, int]) -> Transport:
        """The plan's transport, aborted already if the plan is."""
        addresses = {p.name: self._ways.address(p) for p in take.peers}
        names = {rank: name for name, rank in ranks.items()}
        others = {ranks[p.to] for p in take.serves} | {ranks[d] for s in take.sources for d in s.donors}
        for k in take.keepers:
            if self._name in (k.holder, k.keeper):
                others |= {ranks[k.holder], ranks[k.keeper]}
        if me < plan.n_ranks:
            others |= {*_talks_to(plan, me), *(told_by(plan, me) if self._job.checks.every else ())}
        talks_to = others - {me}
        moves = bool(take.sources or take.serves)
        transport = self._endpoint.open(
            run=self._run,
            plan_version=plan.version,
            rank=me,
            peers={r: addresses[names[r]] for r in sorted(talks_to)},
            streams=min(plan.streams or self._streams, self._streams),
            # A peer that is lost while a run recovers is the coordinator's to notice: it aborts this plan.
            reach_timeout_s=None if moves else REACH_TIMEOUT_S,
            cut=lambda p, why: self._links.is_cut(names[p], plan.version, addresses[names[p]].host_port, why),
        )
        with self._changing:
            self._transport, self._votes = transport, Votes(plan.version, self._emit)
            if plan.version <= self._aborted_version:
                self._abort_open(self._aborted)
        return transport

    def _load(
        self, plan: Plan, rank: int, take: pb.TakePlan, transport: Transport, ranks: Mapping[str, int]
    ) -> None:
        start, stop = plan.partition[plan.stage_of(rank)]
        place = {"stage": plan.stage_of(rank), "replica": plan.replica_of(rank)}
        self._say("stage", **place, first_layer=start, last_layer=stop - 1)
        model, device = model_of(self._job, self.dataset.vocab, self._data_dir), self._device.torch_device
        stage, optimizer = build_stage(self._job, model, plan, rank, device, self._data_dir)
        files = {f.name: file_from_message(f) for f in take.files} if take.restore else {}
        if take.sources:
            self._held = held = self._held or HeldLayers(take.step)
            if held.step != take.step:
                held = self._held = HeldLayers(take.step)
            came = load_from_peers(stage, optimizer, start, take, held, transport, rank, ranks)
            self._say(
                "layers",
                kept=stop - start - came.layers,
                from_peers=came.layers,
                n_bytes=came.n_bytes,
                seconds=came.seconds,
                step=take.step,
            )
        elif take.restore:
            load_checkpoint(stage, optimizer, start, take.restore_step, files, self._files.get)
        job = self._job.model_copy(update={"model": model})
        codecs = LinkCodecs(plan, rank, job.seed, self._cache_dir / "buffers")

        def fetch(name: str) -> dict[str, Tensor] | None:
            return fetched(self._files.get, take.restore_step, files[name]) if name in files else None

        if plan.codecs.has_residuals and files:
            self._say("residuals", loaded=load_residuals(codecs, plan, rank, fetch))
        outer = None
        if plan.local_steps:
            if job.local_steps is None or job.local_steps.every != plan.local_steps:
                asked = job.local_steps.every if job.local_steps is not None else "none"
                raise ModelError(
                    f"found a plan of {plan.local_steps} local steps; required the job's: {asked}"
                )
            outer = OuterOptimizer(stage, job.local_steps, start, plan.partition[-1][1])
            if files:
                self._say("local steps", loaded=load_local(outer, optimizer, plan, rank, fetch))
        assert self._votes is not None
        self._stage, self._optimizer, self._outer, self._done = stage, optimizer, outer, take.step
        self._exchange = self._exchange_of(plan, rank, take, transport, ranks)
        self._context = StepContext(
            plan,
            rank,
            job,
            transport,
            codecs,
            self._votes,
            RECEIVE_TIMEOUT_S,
            self._reached,
            device,
            self.dataset.separator,
            check_of=self._votes.check_of,
            stepping=self._stepping,
        )

    # ---- layers that travel beside the steps

    def _follow(self, follow: pb.Follow) -> None:
        gives = any(f.donor == self._name for f in follow.feeds)
        version = self._context.plan.version if self._context is not None else -1
        if gives and version != follow.plan_version:
            return  # the plan whose layers were to be given is over
        self._ahead.begin(follow)

    def _open_beside(self, version: int, rank: int, peers: Mapping[int, PeerAddress]) -> Transport:
        return self._endpoint.open(
            version, rank, peers, run=self._run, streams=self._streams, reach_timeout_s=None
        )

    def _layer(self, i: int) -> Layer:
        """Layer i of the model, to be followed with."""
        model = model_of(self._job, self.dataset.vocab, self._data_dir)
        layer = fresh_layers(self._job, model, i, i + 1, self._data_dir)[0]
        layer.to(self._device.torch_device)
        return layer

    def _layer_now(self, i: int) -> HeldLayer:
        """The model's layer i as the stage that runs has it."""
        assert self._stage is not None
        assert self._optimizer is not None
        assert self._context is not None
        at = i - self._context.plan.partition[self._context.stage][0]
        return HeldLayer(self._stage.layers[at].state_dict(), self._optimizer.layer_state(at))

    def _stepping(self, step: int, lr: float, frozen_after: int | None) -> None:
        """On the thread of work, from within a step that is committed."""
        context, stage, optimizer = self._context, self._stage, self._optimizer
        if context is not None and stage is not None and optimizer is not None:
            first_layer = context.plan.partition[context.stage][0]
            self._ahead.take(step, stage, optimizer, first_layer, lr, frozen_after)

    def _exchange_of(
        self, plan: Plan, rank: int, take: pb.TakePlan, transport: Transport, ranks: Mapping[str, int]
    ) -> Exchange:
        """What this rank sends to its keepers, and keeps for others."""
        kept = [ranks[k.holder] for k in take.keepers if k.keeper == self._name]
        return Exchange(
            transport,
            plan.version,
            rank,
            plan.partition[plan.stage_of(rank)][0],
            [ranks[k.keeper] for k in take.keepers if k.holder == self._name],
            [Kept(r, *plan.partition[plan.stage_of(r)]) for r in kept],
            MAX_LAYER_BYTES,
            transfer_deadline_s(take.copying_s),
        )

    def _copy(self, step: int, complete: int) -> None:
        """Copy the stage as it is after `step` steps, and have neighbours exchange theirs beside the next."""
        context, stage, optimizer, exchange = self._context, self._stage, self._optimizer, self._exchange
        if context is None or stage is None or optimizer is None or exchange is None:
            return
        own = self._copies.take(step, complete, stage, optimizer, exchange.first_layer)
        copied = pb.Event(copied=pb.Copied(plan_version=exchange.plan_version, step=step))

        def failed(error: Exception) -> None:
            self._fail(ExitCode.WORKER_FAILED, error, fatal=False)

        exchange.start(step, own, self._copies, lambda: self._emit(copied), failed)

    def _serving_failed(self, error: Exception) -> None:
        self._fail(ExitCode.WORKER_FAILED, error)

    def holds(self) -> pb.Holds | None:
        """The layers of the last plan, if it was loaded; nothing else may be going on."""
        if self._context is None:
            return None
        start, stop = self._context.plan.partition[self._context.stage]
        return pb.Holds(step=self._done, layers=pb.Range(start=start, stop=stop))

    def _leave_plan(self) -> None:
        """Close the plan's transport; what the stage holds is kept for whoever needs it next."""
        if self._transport is not None:
            self._transport.close()
        if self._context is not None and self._stage is not None and self._optimizer is not None:
            if self._held is None or self._held.step != self._done:
                self._held = HeldLayers(self._done)
            first_layer = self._context.plan.partition[self._context.stage][0]
            self._held.keep(self._stage, self._optimizer, first_layer)
        with self._changing:
            self._transport = self._votes = None
        self._context = self._stage = self._optimizer = self._outer = self._exchange = None

    def close(self) -> None:
        """Leave the plan; the endpoint is whoever made it's to close."""
        self._ahead.end()
        self._leave_plan()

    # ---- steps

    def _run_steps(self, command: pb.RunSteps) -> None:
        if self._context is not None and command.plan_version == self._context.plan.version:
            self._held = None  # all ranks have loaded, so nobody needs what another plan left here
        for step in range(command.start, command.stop):
            if self._context is None or command.plan_version != self._context.plan.version:
                return
            if command.plan_version <= self._aborted_version:
                return  # told before the plan was over, and not begun
            self._run_step(step, step in command.record, step in command.watch)
            if step + 1 == command.copy_step:
                self._copy(step + 1, command.copy_keeps)

    def _run_step(self, step: int, record: bool, watch: bool) -> None:
        context, stage, optimizer = self._context, self._stage, self._optimizer
        assert context is not None
        assert stage is not None
        assert optimizer is not None
        job, plan = context.job, context.plan
        ids = step_samples(job.seed, self.dataset.n_samples, job.global_batch, step)
        first = plan.first_micro_batch(context.replica)

        def samples(mb: int) -> tuple[int, ...]:
            at = (first + mb) * plan.micro_batch
            return ids[at : at + plan.micro_batch]

        def batch(mb: int) -> Tensor:
            return _stacked([self.dataset.sample(i) for i in samples(mb)])

        if step + 1 < job.steps:
            at = first * plan.micro_batch
            own = plan.micro_batches[context.replica] * plan.micro_batch
            following = step_samples(job.seed, self.dataset.n_samples, job.global_batch, step + 1)
            context.codecs.prefetch(following[at : at + own])
        clock = time.perf_counter
        done = run_step(context, stage, optimizer, step, batch, clock, samples, record, self._outer)
        self._done = step + 1
        if record or watch:
            spans = [span_to_message(s) for s in done.spans]
            links = [link_use_to_message(x) for x in done.links]
            told = pb.StepDone(plan_version=plan.version, step=step, spans=spans, links=links)
            self._emit(pb.Event(step_done=told))

    def _evaluate(self, step: int) -> None:
        if self._context is None or self._stage is None:
            return

        def batch(ids: Sequence[int]) -> Tensor:
            return _stacked([self.dataset.eval_sample(i) for i in ids])

        loss_sum, tokens = run_eval(
            self._context, self._stage, step, self.dataset.n_eval, batch, time.perf_counter
        )
        self._emit(pb.Event(evaluated=pb.Evaluated(step=step, loss_sum=loss_sum, tokens=tokens)))

    def _save(self, step: int) -> None:
        context = self._context
        if context is None or self._stage is None or self._optimizer is None:
            self._emit(pb.Event(saved=pb.Saved(step=step)))
            return
        first_layer = context.plan.partition[context.stage][0]
        files = residual_files(context.codecs, context.plan, context.rank)
        if context.replica == 0:
            files |= stage_files(self._stage, self._optimizer, first_layer, self._outer)
        if self._outer is not None:
            files |= local_files(self._outer, self._stage, self._optimizer, context.plan, context.rank)
        stored = []
        for name, data in files.items():
            self._files.put(step, name, data)
            self._reached("save", step, context.plan.version, context.rank)
            stored.append(file_to_message(file_info(name, data)))
        self._emit(pb.Event(saved=pb.Saved(step=step, files=stored)))


def _stacked(samples: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(samples))


def _talks_to(plan: Plan, rank: int) -> list[int]:
    """The ranks it exchanges frames with: its pipeline (neighbours, norms, ties) and its stage's replicas."""
    replica, stage = plan.replica_of(rank), plan.stage_of(rank)
    pipeline = [plan.rank(replica, s) for s in range(plan.n_stages)]
    return sorted({*pipeline, *plan.group(stage)} - {rank})

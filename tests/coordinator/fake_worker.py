"""A worker that speaks the whole protocol and computes nothing: losses and files are formulas of the step.

Each training step costs it nothing, so a run's life cycle takes milliseconds. Behaviour that tests
need to break is an attribute; what it was told is kept.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from grpc import aio

from protos import orchestrator_pb2 as pb
from protos import orchestrator_pb2_grpc
from protos.convert import plan_from_message, profiled_to_message, spans_to_messages
from protos.version import PROTOCOL_VERSION, SESSION_METADATA
from scheduler.checkpoint_layout import CHUNK_BYTES, weights_file
from scheduler.plan import Plan
from scheduler.profile import DeviceProfile, LayerProfile
from scheduler.timeline import Span, Timeline

N_LAYERS = 4
LAYERS = tuple(LayerProfile(f"layer{i}", 1e6, 2e6, 1000, 4096, 8192, 2000) for i in range(N_LAYERS))
TOKENS = 64


def loss_of(step: int) -> float:
    """A token's loss in step `step`, whoever computes it: what resuming must not change."""
    return 5.0 / (step + 1)


def layer_bytes(layer: int, step: int) -> bytes:
    """Content of a layer's file after `step` steps; layer 0 takes more than one piece."""
    return f"layer {layer} step {step};".encode() * (70_000 if layer == 0 else 10)


@dataclass
class FakeWorker:
    name: str
    token: str
    version: int = PROTOCOL_VERSION
    incarnation: str = "1"
    host: str = ""
    hang_at_step: int = -1
    """Does no step from here on."""
    drop_at_step: int = -1
    """Breaks its connection when it is to do this step."""
    spoil_upload: bool = False
    step_s: float = 0.0
    layer_s: float = 0.001
    """What it says that a layer takes."""
    told: list[pb.Command] = field(default_factory=list)
    restored: dict[str, bytes] = field(default_factory=dict)
    put_errors: list[str] = field(default_factory=list)
    stopped: pb.Stop | None = None
    todo: deque[tuple[int, bool]] = field(default_factory=deque)
    """(step, whether it is to be recorded), the first of which it has voted for."""
    plan: Plan | None = None
    session: str = ""
    job_json: str = ""
    _events: asyncio.Queue[pb.Event | None] = field(default_factory=asyncio.Queue)

    async def run(self, address: str) -> None:
        """Join and obey until told to stop, or until the coordinator ends the stream. Raises AioRpcError."""
        async with aio.insecure_channel(address) as channel:
            self.stub = orchestrator_pb2_grpc.OrchestratorStub(channel)
            await self.join()
            call = self.stub.Session(self._up(), metadata=self.metadata())
            beat = asyncio.create_task(self._beat())
            try:
                async for command in call:
                    self.told.append(command)
                    if not await self._obey(command):
                        break
            finally:
                beat.cancel()
                self._events.put_nowait(None)
                call.cancel()

    def metadata(self) -> tuple[tuple[str, str], ...]:
        return ((SESSION_METADATA, self.session),)

    async def join(self) -> None:
        request = pb.JoinRequest(
            protocol_version=self.version,
            token=self.token,
            name=self.name,
            device=pb.DeviceInfo(kind="cpu", memory_bytes=1 << 30, host=self.host or self.name),
            data_address=f"{self.name}:1",
            incarnation=self.incarnation,
        )
        reply = await self.stub.Join(request, timeout=10)
        self.session, self.job_json = reply.session, reply.job_json

    async def _up(self) -> AsyncIterator[pb.Event]:
        while (event := await self._events.get()) is not None:
            yield event

    async def _beat(self) -> None:
        while True:
            self.say(heartbeat=pb.Heartbeat())
            await asyncio.sleep(0.2)

    def say(self, **body: Any) -> None:
        self._events.put_nowait(pb.Event(**body))

    # ---- obeying

    async def _obey(self, command: pb.Command) -> bool:
        kind = command.WhichOneof("body")
        if kind == "profile":
            ones = (self.layer_s,) * N_LAYERS
            self.say(
                profiled=profiled_to_message(LAYERS, DeviceProfile(self.name, ones, ones, ones), "d", 64, 4)
            )
        elif kind == "measure_links":
            links = [
                pb.LinkSample(peer=p.name, latency_s=0.01, bandwidth_Bps=1e6, bandwidth_striped_Bps=4e6)
                for p in command.measure_links.peers
            ]
            self.say(links_measured=pb.LinksMeasured(links=links))
        elif kind == "take_plan":
            await self._take(command.take_plan)
        elif kind == "run_steps":
            return await self._steps(command.run_steps)
        elif kind == "abort_plan":
            self.todo.clear()
        elif kind == "commit":
            return await self._commit(command.commit.step)
        elif kind == "save":
            await self._save(command.save.step)
        elif kind == "evaluate":
            tokens = 10 if self._is_last() else 0
            step = command.evaluate.step
            self.say(evaluated=pb.Evaluated(step=step, loss_sum=tokens * 10.0 / step, tokens=tokens))
        elif kind == "stop":
            self.stopped = command.stop
            return False
        return True

    def _rank(self) -> int:
        assert self.plan is not None
        rank = self.plan.rank_of_device(self.name)
        assert rank is not None
        return rank

    def _is_last(self) -> bool:
        assert self.plan is not None
        return self.plan.stage_of(self._rank()) == self.plan.n_stages - 1

    async def _take(self, take: pb.TakePlan) -> None:
        self.todo.clear()
        self.plan = plan_from_message(take.plan)
        start, stop = self.plan.partition[self.plan.stage_of(self._rank())]
        if take.restore:
            for layer in range(start, stop):
                name = weights_file(layer)
                request = pb.GetLayerRequest(step=take.restore_step, name=name)
                chunks = [c async for c in self.stub.GetLayer(request, metadata=self.metadata(), timeout=10)]
                self.restored[name] = b"".join(c.data for c in chunks)
        self.say(ready=pb.Ready(plan_version=self.plan.version, next_step=take.restore_step))

    async def _steps(self, run: pb.RunSteps) -> bool:
        idle = not self.todo
        wanted = {*run.record, *run.watch}
        self.todo.extend((step, step in wanted) for step in range(run.start, run.stop))
        return await self._vote() if idle else True

    async def _commit(self, step: int) -> bool:
        """Its oldest step is committed: say what was recorded, and vote for the next."""
        assert self.plan is not None
        done, recorded = self.todo.popleft()
        assert done == step
        if recorded:
            rank = self._rank()
            spans = (Span(rank, "forward", 0.0, 0.1, 0), Span(rank, "backward", 0.1, 0.3, 0))
            messages = spans_to_messages(Timeline(self.plan.n_ranks, spans), rank)
            self.say(step_done=pb.StepDone(plan_version=self.plan.version, step=step, spans=messages))
        return await self._vote()

    async def _vote(self) -> bool:
        assert self.plan is not None
        if not self.todo:
            return True
        step = self.todo[0][0]
        if step == self.drop_at_step:
            return False
        if 0 <= self.hang_at_step <= step:
            return True
        await asyncio.sleep(self.step_s)
        tokens = TOKENS if self._is_last() else 0
        vote = pb.StepVote(
            plan_version=self.plan.version,
            step=step,
            loss_sum=tokens * loss_of(step),
            tokens=tokens,
            squares=[0.25],
            duration_s=0.3,
            sent_bytes=100,
            raw_bytes=200,
        )
        self.say(step_vote=vote)
        return True

    async def _save(self, step: int) -> None:
        assert self.plan is not None
        files = []
        rank = self._rank()
        if self.plan.replica_of(rank) == 0:
            for layer in range(*self.plan.partition[self.plan.stage_of(rank)]):
                name, data = weights_file(layer), layer_bytes(layer, step)
                try:
                    reply = await self.stub.PutLayer(
                        self.chunks(step, name, data), metadata=self.metadata(), timeout=10
                    )
                except aio.AioRpcError as error:
                    self.put_errors.append(f"{error.code().name}: {error.details()}")
                    self.say(failed=pb.Failed(code=15, reason=str(error.details()), fatal=False))
                    return
                files.append(pb.LayerFile(name=name, sha256=reply.sha256, n_bytes=reply.n_bytes))
        self.say(saved=pb.Saved(step=step, files=files))

    async def chunks(self, step: int, name: str, data: bytes) -> AsyncIterator[pb.LayerChunk]:
        sha256 = hashlib.sha256(data).hexdigest()
        if self.spoil_upload:
            data = b"?" + data[1:]
        for offset in range(0, len(data), CHUNK_BYTES):
            piece = data[offset : offset + CHUNK_BYTES]
            last = offset + len(piece) == len(data)
            yield pb.LayerChunk(
                step=step,
                name=name,
                offset=offset,
                total_bytes=len(data),
                data=piece,
                sha256=sha256 if last else "",
            )

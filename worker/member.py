"""A worker from joining to leaving: the event loop around one thread of work.

The loop keeps heartbeats going while tensors are computed, and passes commands on in order; an
abort does not wait for its turn. A session that ends without a word is followed by another: the worker
joins again, as whoever it was. First Ctrl-C drains, second stops.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import torch

from protos import orchestrator_pb2 as pb
from protos.convert import device_to_message
from protos.orchestrator_pb2_grpc import OrchestratorStub
from protos.tls import Authority, aio_channel
from protos.version import PROTOCOL_VERSION
from scheduler.checkpoint_layout import LayerFileInfo
from scheduler.departures import Departure
from scheduler.exit_codes import ExitCode, from_wire
from scheduler.job import job_from_json
from worker.checkpoint import LayerFileError
from worker.device import LocalDevice, memory_meter
from worker.endpoint import DataEndpoint
from worker.faults import Fault, Faults, Reached, no_faults
from worker.identity import Identity
from worker.optimizer import load_early
from worker.runtime import Runtime, Uploads
from worker.session import JoinRefused, Membership, Session, join
from worker.transport import TransportAborted
from worker.tunnel import Tunnels
from worker.ways import Ways

Say = Callable[..., None]


@dataclass(frozen=True, slots=True)
class MemberOptions:
    """What `worker join` was told."""

    address: str
    token: str
    name: str
    bind: str
    advertise: str | None
    data_dir: Path
    cache_dir: Path
    peer_map: Path | None
    streams: int
    threads: int
    join_timeout_s: float
    rejoin_timeout_s: float
    """How long a worker that was cut off tries to join again."""
    identity: Identity
    faults: tuple[Fault, ...] = ()
    """That this process is to suffer, for tests."""
    at_step: Callable[[int], None] = lambda _: None
    """Told how many steps were done before each that this worker votes for, on its thread of work."""
    authority: Authority | None = None
    """Who signs the coordinator's certificate; None: in the clear."""


class LoopFiles:
    """`Files` for the thread of work: each call runs on the event loop and is waited for."""

    def __init__(self, session: Callable[[], Session], loop: asyncio.AbstractEventLoop) -> None:
        """`session`: the one of the moment; a worker that was cut off has another."""
        self._session, self._loop = session, loop

    def put(self, step: int, name: str, data: bytes) -> None:
        try:
            asyncio.run_coroutine_threadsafe(self._session().put_layer(step, name, data), self._loop).result()
        except grpc.aio.AioRpcError as e:
            raise Uploads(f"{name}: the coordinator did not store it: {e.details()}") from None

    def get(self, step: int, file: LayerFileInfo) -> bytes:
        coming = self._session().get_layer(step, file)
        try:
            return asyncio.run_coroutine_threadsafe(coming, self._loop).result()
        except grpc.aio.AioRpcError as e:
            if e.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                # The session has ended, too: the worker joins again, and is told anew what to load.
                raise TransportAborted(f"{file.name}: the coordinator went away: {e.details()}") from None
            raise LayerFileError(f"{file.name}: the coordinator did not send it: {e.details()}") from None


async def run_member(options: MemberOptions, device: LocalDevice, say: Say) -> ExitCode:
    """Join, obey until told to stop, leave. Returns the exit code. Raises JoinRefused, TransportError."""
    torch.set_num_threads(options.threads)
    load_early()
    routes = _routes(options.peer_map)
    identity = options.identity
    tunnels: Tunnels | None = None
    endpoint = DataEndpoint(options.bind, keys=identity.keys)
    try:
        async with AsyncExitStack() as stack:
            stubs = []
            for address in options.address.split(","):
                channel = await stack.enter_async_context(aio_channel(address, options.authority))
                stubs.append((address, OrchestratorStub(channel)))
            data_address = options.advertise or endpoint.address
            request = pb.JoinRequest(
                protocol_version=PROTOCOL_VERSION,
                token=options.token,
                name=options.name,
                device=device_to_message(device.described, kind=device.kind, model=device.model),
                data_address=data_address,
                incarnation=identity.incarnation,
                curve_public_key=identity.keys.public,
                identity_proof=identity.proof(options.token),
            )

            async def enter(timeout_s: float) -> Membership:
                return await join(
                    stubs,
                    request,
                    authority=options.authority,
                    timeout_s=timeout_s,
                    rng=random.Random(os.getpid()),
                    say=lambda text: say("waiting", reason=text),
                )

            member = await enter(options.join_timeout_s)
            say(
                "joined",
                name=options.name,
                run=member.run,
                device=f"{device.kind} ({device.model})",
                data_address=data_address,
            )
            if member.relay_address:
                public = identity.keys.public
                tunnels = Tunnels(member.relay_address, member.relay_key, public, endpoint.address)
                say("relay", address=member.relay_address)
            ways = Ways(routes, tunnels)
            return await _Member(options, device, say, member, enter, endpoint, ways).run()
    finally:
        if tunnels is not None:
            await asyncio.to_thread(tunnels.close)
        await asyncio.to_thread(endpoint.close)


class _Member:
    """The session, the thread of work, and what passes between them."""

    def __init__(
        self,
        options: MemberOptions,
        device: LocalDevice,
        say: Say,
        member: Membership,
        enter: Callable[[float], Coroutine[Any, Any, Membership]],
        endpoint: DataEndpoint,
        ways: Ways,
    ) -> None:
        self._say = say
        self._at_step = options.at_step
        self._endpoint = endpoint
        self._loop = asyncio.get_running_loop()
        self._enter, self._run = enter, member.run
        self._rejoin_timeout_s = options.rejoin_timeout_s
        self._memory_used = memory_meter(device)
        self._session = Session(member, lambda: self._runtime.waits_for(), self._memory_used)
        self._session_number = 0
        self._coming_back: asyncio.Task[Membership] | None = None
        self._fatal: tuple[ExitCode, str] | None = None
        """What this worker cannot go on from: it does not come back."""
        self._work = ThreadPoolExecutor(1, "work")
        self._interrupts = 0
        self._ended: tuple[ExitCode, str] | None = None
        self._runtime = Runtime(
            job=job_from_json(member.job_json),
            run=member.run,
            name=options.name,
            device=device,
            endpoint=endpoint,
            files=LoopFiles(lambda: self._session, self._loop),
            data_dir=options.data_dir,
            cache_dir=options.cache_dir,
            ways=ways,
            streams=options.streams,
            emit=self._emit,
            say=say,
            reached=_reached(options, say),
        )

    def _emit(self, event: pb.Event) -> None:
        if event.WhichOneof("body") == "step_vote":
            self._at_step(event.step_vote.step)
        if event.WhichOneof("body") == "failed" and event.failed.fatal:
            self._fatal = (from_wire(event.failed.code), event.failed.reason)
        self._loop.call_soon_threadsafe(lambda: self._session.send(event))

    async def run(self) -> ExitCode:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._loop.add_signal_handler(number, self._interrupt, number)
        while self._ended is None:
            why = await self._obey_session()
            if self._ended is None:
                await self._come_back(why)
        code, reason = self._ended
        self._runtime.abort(reason)
        self._session.close()
        await asyncio.to_thread(self._work.shutdown)
        await asyncio.to_thread(self._runtime.close)
        self._say("stopped", code=int(code), reason=reason)
        return code

    async def _obey_session(self) -> str:
        """Take commands until told to stop, or until the session ends; then why it did."""
        try:
            async for command in self._session.commands():
                self._take(command)
                if self._ended is not None:
                    break
        except grpc.aio.AioRpcError as e:
            return f"{e.code().name}: {e.details()}"
        return "it closed the session"

    async def _come_back(self, why: str) -> None:
        """The session has ended and nobody told this worker to stop: forget the step, and join again."""
        why = f"the coordinator went away ({why})"
        if self._fatal is not None or self._interrupts or not self._rejoin_timeout_s:
            lost = (ExitCode.COORDINATOR_LOST, f"{why}; start it with --resume and join again")
            self._ended = self._fatal or lost
            return
        self._say("cut off", reason=why)
        self._session_number += 1  # what the old session still wants done is not done any more
        self._coming_back = self._loop.create_task(self._enter(self._rejoin_timeout_s))
        try:
            member = await self._coming_back
        except asyncio.CancelledError:
            self._ended = (ExitCode.INTERRUPTED, "told to leave while the coordinator was away")
        except JoinRefused as e:
            self._ended = (e.code, f"{why}; {e}")
        else:
            if member.run != self._run:
                self._ended = (ExitCode.RUN_OVER, f"{why}; found run {member.run} in its place")
                return
            await self._take_up(member, why)
        finally:
            self._coming_back = None

    async def _take_up(self, member: Membership, why: str) -> None:
        """Do the step that all have voted for, if this worker was cut off before it heard so; forget any
        other; and say what is left here."""
        if member.committed is not None:
            self._runtime.commit(member.committed)
        self._runtime.cut_off(why)
        await self._loop.run_in_executor(self._work, lambda: None)
        self._session = Session(member, self._runtime.waits_for, self._memory_used)
        holds = self._runtime.holds()
        if holds is not None:
            self._session.send(pb.Event(holds=holds))
        self._say("joined again", run=member.run)

    def _take(self, command: pb.Command) -> None:
        match command.WhichOneof("body"):
            case "stop":
                self._ended = (ExitCode(command.stop.code), command.stop.reason)
            case "admit":
                self._endpoint.admit(command.admit.curve_public_keys)
            case "abort_plan":
                self._say("aborted", reason=command.abort_plan.reason)
                self._runtime.abort(command.abort_plan.reason, command.abort_plan.plan_version)
            case "commit":
                self._runtime.commit(command.commit)
            case "unfollow":
                self._loop.run_in_executor(None, self._runtime.unfollow, command.unfollow.version)
            case "measure_links":  # beside the steps, if there are any
                self._loop.run_in_executor(None, self._obey, command, self._session_number)
            case _:
                self._work.submit(self._obey, command, self._session_number)

    def _obey(self, command: pb.Command, session_number: int) -> None:
        if session_number != self._session_number:
            return
        try:
            self._runtime.handle(command)
        except BaseException as e:  # a defect of ours: the coordinator must hear of it, not wait
            reason = f"{type(e).__name__}: {e}"
            failed = pb.Failed(code=int(ExitCode.INTERNAL), reason=reason, fatal=True)
            self._emit(pb.Event(failed=failed))
            raise

    def _interrupt(self, number: signal.Signals) -> None:
        self._interrupts += 1
        if self._coming_back is not None:
            self._coming_back.cancel()
            return
        if self._interrupts == 1:
            self._say("leaving", reason="told to leave; once more stops at once")
            # What takes a machine back sends SIGTERM; a person at a terminal sends SIGINT.
            notice = number is signal.SIGTERM
            reason = "its machine is taken back" if notice else "told to leave by its operator"
            code = Departure.NOTICE if notice else Departure.LEFT
            self._session.send(pb.Event(leaving=pb.Leaving(reason=reason, departure=int(code))))
            return
        self._ended = (ExitCode.INTERRUPTED, "stopped by a second signal")
        self._session.close()


def _reached(options: MemberOptions, say: Say) -> Reached:
    if not options.faults:
        return no_faults
    port = int(options.address.rpartition(":")[2])
    return Faults(options.faults, port, say, options.cache_dir).reached


def _routes(path: Path | None) -> dict[str, str]:
    """`{peer: "host:port"}` of a --peer-map file. Raises JoinRefused for one that is none."""
    if path is None:
        return {}
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict) or not all(isinstance(v, str) for v in raw.values()):
            raise ValueError("not an object of strings")
        return raw
    except (OSError, ValueError) as e:
        raise JoinRefused(
            ExitCode.USAGE, f'--peer-map {path}: found {e}, required JSON like {{"name": "host:port"}}'
        ) from e

"""The gRPC shell, with workers that speak the protocol and compute nothing: whole lives of a run."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from coordinator import driver, run
from coordinator.commands import RecordStep
from coordinator.database import DatabaseError
from coordinator.history import read_history
from coordinator.planning import make
from coordinator.resume import open_run, token
from coordinator.run import RunOptions
from coordinator.service import _REFUSED as refusals  # noqa: N811
from coordinator.serving import PortInUse
from coordinator.store import Store
from protos import orchestrator_pb2 as pb
from protos import orchestrator_pb2_grpc
from protos.version import PROTOCOL_VERSION, SESSION_METADATA
from scheduler.exit_codes import ExitCode
from scheduler.job import JobSpec
from scheduler.samples import Ledger
from sim.trace import load
from worker.session import _REFUSALS as understood  # noqa: N811

from .fake_worker import FakeWorker, layer_bytes, loss_of
from .job import a_job

LIMIT_S = 60.0
"""Against a test that hangs; no test waits for it."""


class Run:
    """A coordinator in this process: what it said, and how to talk to it."""

    def __init__(self, secret: str) -> None:
        self.secret = secret
        self.said: list[dict[str, Any]] = []
        self.code: ExitCode | None = None
        self._news = asyncio.Event()

    def say(self, event: dict[str, Any]) -> None:
        self.said.append(event)
        self._news.set()

    async def heard(self, kind: str, **fields: Any) -> dict[str, Any]:
        """The first event of this kind with these fields, now or later."""
        while True:
            for event in self.said:
                if event["event"] == kind and fields.items() <= event.items():
                    return event
            self._news.clear()
            await self._news.wait()

    def all(self, kind: str) -> list[dict[str, Any]]:
        return [x for x in self.said if x["event"] == kind]

    async def address(self) -> str:
        return str((await self.heard("listening"))["address"])

    def worker(self, name: str, **behaviour: Any) -> FakeWorker:
        return FakeWorker(name, self.secret, **behaviour)

    async def call(self, method: str, request: Any, metadata: tuple[tuple[str, str], ...] = ()) -> Any:
        async with aio.insecure_channel(await self.address()) as channel:
            stub = orchestrator_pb2_grpc.OrchestratorStub(channel)
            return await getattr(stub, method)(request, metadata=metadata, timeout=10)


@asynccontextmanager
async def coordinator(
    state_dir: Path,
    job: JobSpec | None = None,
    *,
    min_workers: int = 2,
    resume: bool = False,
    dry_run: bool = False,
    regather_s: float = 0.0,
) -> AsyncIterator[Run]:
    """A running coordinator; leaving waits for its end (a test that leaves it running stops it)."""
    job = job or a_job()
    opened = open_run(state_dir, job, resume=resume, resume_step=None, now_s=1.0)
    secret = token(state_dir, None)
    this = Run(secret[0])
    options = RunOptions("127.0.0.1:0", min_workers, dry_run, heartbeat_s=0.2, regather_s=regather_s)
    task = asyncio.create_task(run.run(job, opened, options, secret, this.say, make))
    try:
        yield this
        this.code = await task
    except BaseException:
        task.cancel()
        raise
    finally:
        opened.close()


def lives(body: Callable[[], Awaitable[None]]) -> None:
    """Run a test's coroutine, with a limit against hanging."""
    asyncio.run(asyncio.wait_for(body(), LIMIT_S))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "TICK_S", 0.05)
    monkeypatch.setattr(run, "GRACE_S", 2.0)


@contextmanager
def refused(code: grpc.StatusCode, said: str) -> Iterator[None]:
    with pytest.raises(aio.AioRpcError) as e:
        yield
    assert e.value.code() is code
    assert said in str(e.value.details())


async def together(this: Run, *workers: FakeWorker) -> None:
    address = await this.address()
    await asyncio.gather(*(w.run(address) for w in workers))


async def a_whole_run(state_dir: Path, **options: Any) -> tuple[Run, list[FakeWorker]]:
    names = options.pop("names", ("a", "b"))
    async with coordinator(state_dir, min_workers=len(names), **options) as this:
        workers = [this.worker(n) for n in names]
        await together(this, *workers)
    return this, workers


def test_a_run_from_join_to_checkpoint(tmp_path: Path) -> None:
    async def body() -> None:
        this, workers = await a_whole_run(tmp_path)
        assert this.code is ExitCode.OK
        assert [s["loss"] for s in this.all("step")] == [pytest.approx(loss_of(i)) for i in range(8)]
        assert [x["step"] for x in this.all("eval")] == [4, 8]
        assert [x["step"] for x in this.all("checkpoint")] == [3, 6, 8]
        assert this.all("checkpoint")[-1]["removed"] == [3], "the last two stay, and the best is one of them"
        end = this.all("finished")[0]
        assert (end["step"], end["code"]) == (8, 0)
        assert all(w.stopped is not None and w.stopped.code == 0 for w in workers)
        saved = Path(end["checkpoint"])
        assert (saved / "layer-0000.safetensors").read_bytes() == layer_bytes(0, 8)
        assert len(layer_bytes(0, 8)) > 1 << 20, "more than one piece"
        links = load(saved.parent.parent / "links")
        assert set(links.links) == {(a, b) for a in links.nodes for b in links.nodes if a != b}
        assert len(links.nodes) == len(workers)

    lives(body)


def test_history_can_be_read_from_the_state_directory_alone(tmp_path: Path) -> None:
    lives(lambda: _run_and_forget(tmp_path))
    h = read_history(tmp_path)
    assert (h.phase, h.code, h.job.name) == ("finished", 0, "tiny")
    assert h.losses == tuple(pytest.approx(loss_of(i)) for i in range(8))
    assert h.sent_bytes == 8 * 2 * 100
    assert {w.name: w.rank for w in h.workers} == {h.devices[0]: 0, h.devices[1]: 1}
    assert h.plan is not None
    assert all(s.predicted_s == h.plan.predicted_step_s for s in h.steps)
    assert h.predicted is not None
    assert h.predicted.duration_s == pytest.approx(h.plan.predicted_step_s)
    assert [m.step for m in h.measured] == [5, 7]
    assert {s.rank for s in h.measured[0].timeline.spans} == {0, 1}
    assert [e.step for e in h.evals] == [4, 8]


async def _run_and_forget(state_dir: Path) -> None:
    await a_whole_run(state_dir)


def test_a_wrong_token_another_version_and_a_bad_name_are_refused_with_what_to_do(tmp_path: Path) -> None:
    async def body() -> None:
        async with coordinator(tmp_path) as this:
            address = await this.address()
            with refused(grpc.StatusCode.UNAUTHENTICATED, "token"):
                await FakeWorker("a", "wrong").run(address)
            both = (
                f"protocol version {PROTOCOL_VERSION + 1}, the coordinator speaks {PROTOCOL_VERSION}; install"
            )
            with refused(grpc.StatusCode.FAILED_PRECONDITION, both):
                await this.worker("a", version=PROTOCOL_VERSION + 1).run(address)
            with refused(grpc.StatusCode.INVALID_ARGUMENT, "found the name '../a'"):
                await this.worker("../a").run(address)
            with refused(grpc.StatusCode.UNAUTHENTICATED, "token"):
                await this.call("Status", pb.StatusRequest(token="wrong"))
            with refused(grpc.StatusCode.UNAUTHENTICATED, "token"):
                await this.call("Drain", pb.DrainRequest(token="wrong"))
            assert this.all("joined") == []
            await this.call("Drain", pb.DrainRequest(token=this.secret))
        assert this.code is ExitCode.OK

    lives(body)


def test_every_refusal_to_join_reaches_the_worker_as_its_own_exit_code() -> None:
    final = {code: status for code, status in refusals.items() if code is not ExitCode.SUPERSEDED}
    assert {code: understood[status] for code, status in final.items()} == {x: x for x in final}
    assert ExitCode.RUN_OVER in refusals


def test_a_taken_name_is_refused_and_free_again_once_its_owner_is_gone(tmp_path: Path) -> None:
    async def body() -> None:
        async with coordinator(tmp_path) as this:
            address = await this.address()
            first = asyncio.create_task(this.worker("a").run(address))
            await this.heard("joined", name="a")
            with refused(grpc.StatusCode.ALREADY_EXISTS, "named 'a' is a member already"):
                await this.worker("a", incarnation="2").run(address)
            first.cancel()
            await this.heard("left", name="a")
            await together(this, this.worker("a", incarnation="3"), this.worker("b"))
        assert this.code is ExitCode.OK

    lives(body)


def test_nothing_works_without_a_session(tmp_path: Path) -> None:
    async def body() -> None:
        async with coordinator(tmp_path) as this:
            stranger = this.worker("a")
            metadata = ((SESSION_METADATA, "guessed"),)
            with refused(grpc.StatusCode.UNAUTHENTICATED, "no session"):
                await this.call("PutLayer", stranger.chunks(3, "layer-0000.safetensors", b"x"), metadata)
            async with aio.insecure_channel(await this.address()) as channel:
                stub = orchestrator_pb2_grpc.OrchestratorStub(channel)
                with refused(grpc.StatusCode.UNAUTHENTICATED, "no session"):
                    async for _ in stub.GetLayer(pb.GetLayerRequest(step=1, name="x"), metadata=metadata):
                        pass
                with refused(grpc.StatusCode.UNAUTHENTICATED, "join first"):
                    async for _ in stub.Session(iter(()), metadata=metadata):
                        pass
            await this.call("Drain", pb.DrainRequest(token=this.secret))

    lives(body)


def test_a_file_for_a_step_that_is_not_being_saved_is_refused(tmp_path: Path) -> None:
    async def body() -> None:
        async with coordinator(tmp_path) as this:
            member = this.worker("a")
            async with aio.insecure_channel(await this.address()) as channel:
                member.stub = orchestrator_pb2_grpc.OrchestratorStub(channel)
                await member.join()
            with refused(grpc.StatusCode.INVALID_ARGUMENT, "step 3 is not being saved"):
                chunks = member.chunks(3, "layer-0000.safetensors", b"x")
                await this.call("PutLayer", chunks, member.metadata())
            await this.call("Drain", pb.DrainRequest(token=this.secret))

    lives(body)


def test_a_lost_worker_without_whom_there_is_no_plan_ends_the_run_and_the_others_are_told_who(
    tmp_path: Path,
) -> None:
    async def body() -> None:
        async with coordinator(tmp_path, a_job(parallelism="{stages: 2}")) as this:
            a = this.worker("a")
            await together(this, a, this.worker("b", drop_at_step=5))
        assert this.code is ExitCode.WORKER_LOST
        failed = this.all("failed")[0]
        assert failed["reason"].startswith("b is lost")
        assert "checkpoint of step 3 can be resumed" in failed["reason"]
        assert any(c.WhichOneof("body") == "abort_plan" for c in a.told)
        assert a.stopped is not None
        assert (a.stopped.code, a.stopped.reason) == (ExitCode.WORKER_LOST, failed["reason"])

    lives(body)
    assert read_history(tmp_path).code == ExitCode.WORKER_LOST


def test_a_run_goes_back_to_its_checkpoint_by_itself_and_the_ledger_shows_what_was_discarded(
    tmp_path: Path,
) -> None:
    async def body() -> None:
        async with coordinator(tmp_path, regather_s=60.0) as this:
            a, b, c = this.worker("a"), this.worker("b", drop_at_step=5), this.worker("c")
            first = asyncio.create_task(together(this, a, b))
            await this.heard("left", name="b")
            await together(this, c)
            await first
        assert this.code is ExitCode.OK
        (told,) = this.all("recovery")
        assert told["step"] == 3
        assert "back to the checkpoint of step 3, 2 steps again" in told["reason"]
        restored = a.restored | c.restored
        assert restored == {f"layer-{i:04d}.safetensors": layer_bytes(i, 3) for i in range(4)}
        assert [s["step"] for s in this.all("step")] == [1, 2, 3, 4, 5, 4, 5, 6, 7, 8]

    lives(body)
    h = read_history(tmp_path)
    assert h.losses == tuple(pytest.approx(loss_of(i)) for i in range(8))
    assert [s.attempt for s in h.steps] == [1] * 3 + [2] * 5
    with Store(tmp_path, read_only=True) as store:
        assert store.ledger().ranges == ((0, 64),)
        assert len(store.rows("SELECT * FROM samples WHERE discarded = 1")) == 2


def test_a_resumed_run_continues_as_if_it_had_not_stopped_with_another_number_of_workers(
    tmp_path: Path,
) -> None:
    async def body() -> None:
        async with coordinator(tmp_path, a_job(parallelism="{stages: 2}")) as this:
            await together(this, this.worker("a"), this.worker("b", drop_at_step=5))
        again, workers = await a_whole_run(
            tmp_path, job=a_job(parallelism="{stages: 3}"), resume=True, names=("a", "b", "c")
        )
        assert again.code is ExitCode.OK
        restored: dict[str, bytes] = {}
        for w in workers:
            restored |= w.restored
        assert restored == {f"layer-{i:04d}.safetensors": layer_bytes(i, 3) for i in range(4)}
        assert [s["step"] for s in again.all("step")] == [4, 5, 6, 7, 8]

    lives(body)
    h = read_history(tmp_path)
    assert h.losses == tuple(pytest.approx(loss_of(i)) for i in range(8))
    assert h.attempts == 2
    assert h.plan is not None
    assert h.plan.n_ranks == 3
    ledger = Ledger()
    for s in h.steps:
        ledger = ledger.consume(s.step * 8, (s.step + 1) * 8)
    assert ledger.ranges == ((0, 64),)


def test_draining_saves_where_it_stands_and_resumes_from_there(tmp_path: Path) -> None:
    async def body() -> None:
        async with coordinator(tmp_path) as this:
            workers = [this.worker(n, step_s=0.02) for n in "ab"]
            running = asyncio.create_task(together(this, *workers))
            await this.heard("step", step=1)
            await this.call("Drain", pb.DrainRequest(token=this.secret, reason="lunch"))
            await running
        end = this.all("finished")[0]
        assert this.code is ExitCode.OK
        assert "lunch" in end["reason"]
        assert 0 < end["step"] < 8
        assert this.all("checkpoint")[-1]["step"] == end["step"]
        again, _ = await a_whole_run(tmp_path, resume=True)
        assert [s["step"] for s in again.all("step")] == list(range(end["step"] + 1, 9))

    lives(body)


def test_stopping_now_saves_nothing(tmp_path: Path) -> None:
    async def body() -> None:
        async with coordinator(tmp_path) as this:
            await this.address()
            before = await this.call("Status", pb.StatusRequest(token=this.secret))
            assert not any(before.HasField(x) for x in ("loss", "eval_loss", "measured_step_s", "plan"))
            workers = [this.worker(n, hang_at_step=2) for n in "ab"]
            running = asyncio.create_task(together(this, *workers))
            await this.heard("step", step=2)
            await this.call("Drain", pb.DrainRequest(token=this.secret, now=True))
            await running
        assert this.code is ExitCode.INTERRUPTED
        assert this.all("checkpoint") == []
        assert all(w.stopped is not None and w.stopped.code == ExitCode.INTERRUPTED for w in workers)

    lives(body)


def test_a_full_disk_costs_the_checkpoint_and_says_so_but_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync
    full_for = [3]

    def fsync(fd: int) -> None:
        if full_for and f"step-{full_for[0]:06d}" in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(fd)

    async def body() -> None:
        monkeypatch.setattr(os, "fsync", fsync)
        this, workers = await a_whole_run(tmp_path)
        assert this.code is ExitCode.OK
        assert [x["step"] for x in this.all("checkpoint")] == [6, 8]
        assert any(
            "step 3 failed" in x["reason"] and "No space left" in x["reason"] for x in this.all("warning")
        )
        assert any("RESOURCE_EXHAUSTED" in e for w in workers for e in w.put_errors)

    lives(body)
    assert not (tmp_path / "checkpoints" / "step-000003").exists()


def test_a_step_that_cannot_be_written_down_is_told_to_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger has no hole: the coordinator lets go, and goes on when there is room."""
    real = Store.step

    def full(store: Store, record: RecordStep, predicted_s: float, now_s: float) -> None:
        if record.step == 4:
            raise DatabaseError("database or disk is full")
        real(store, record, predicted_s, now_s)

    async def body() -> None:
        monkeypatch.setattr(Store, "step", full)
        async with coordinator(tmp_path) as this:
            workers = [this.worker(n) for n in "ab"]
            address = await this.address()
            await asyncio.gather(*(w.run(address) for w in workers), return_exceptions=True)
        assert this.code is ExitCode.STATE_DIR
        assert [x["step"] for x in this.all("step")] == [1, 2, 3, 4]
        (said,) = this.all("gave_way")
        assert "step 4 cannot be written down" in said["reason"]
        assert "--resume" in said["reason"]
        assert said["step"] == 4
        assert all(w.stopped is None for w in workers), "they may wait for whoever is started again"
        monkeypatch.setattr(Store, "step", real)
        again, _ = await a_whole_run(tmp_path, resume=True)
        assert again.code is ExitCode.OK
        with Store(tmp_path, read_only=True) as store:
            assert store.ledger().ranges == ((0, 8 * a_job().global_batch),)

    lives(body)


def test_a_file_that_changed_on_the_way_is_refused(tmp_path: Path) -> None:
    async def body() -> None:
        async with coordinator(tmp_path) as this:
            a = this.worker("a", spoil_upload=True)
            await together(this, a, this.worker("b"))
        assert this.code is ExitCode.CHECKPOINT_WRITE, "the last checkpoint could not be written either"
        assert "INVALID_ARGUMENT" in a.put_errors[0]
        assert "found sha256" in a.put_errors[0]
        assert this.all("checkpoint") == []

    lives(body)


def test_a_dry_run_prints_the_plan_and_releases_the_workers(tmp_path: Path) -> None:
    async def body() -> None:
        this, workers = await a_whole_run(tmp_path, dry_run=True)
        assert this.code is ExitCode.OK
        text = this.all("description")[0]["text"]
        assert all(w.name in text for w in workers)
        assert this.all("plan")[0]["reasons"]
        assert all(w.stopped is not None and w.stopped.code == 0 and w.plan is None for w in workers)

    lives(body)


def test_status_names_phase_step_and_every_worker_with_its_layers(tmp_path: Path) -> None:
    async def body() -> None:
        async with coordinator(tmp_path) as this:
            await this.address()
            before = await this.call("Status", pb.StatusRequest(token=this.secret))
            assert not any(before.HasField(x) for x in ("loss", "eval_loss", "measured_step_s", "plan"))
            workers = [this.worker(n, hang_at_step=2) for n in "ab"]
            running = asyncio.create_task(together(this, *workers))
            await this.heard("step", step=2)
            reply = await this.call("Status", pb.StatusRequest(token=this.secret))
            assert (reply.phase, reply.step, reply.steps) == ("running", 2, 8)
            assert reply.loss == pytest.approx(loss_of(1))
            by_rank = sorted((w for w in reply.workers), key=lambda w: w.rank)
            assert [w.rank for w in by_rank] == [0, 1]
            assert (by_rank[0].first_layer, by_rank[1].last_layer) == (0, 3)
            assert by_rank[0].last_layer + 1 == by_rank[1].first_layer
            await this.call("Drain", pb.DrainRequest(token=this.secret, now=True))
            await running

    lives(body)


def test_the_health_service_answers(tmp_path: Path) -> None:
    async def body() -> None:
        async with coordinator(tmp_path) as this:
            async with aio.insecure_channel(await this.address()) as channel:
                stub = health_pb2_grpc.HealthStub(channel)
                for service in ("", "isthmus.v1.Orchestrator"):
                    reply = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
                    assert reply.status == health_pb2.HealthCheckResponse.SERVING
            await this.call("Drain", pb.DrainRequest(token=this.secret))

    lives(body)


def test_a_message_that_cannot_be_costs_the_sender_its_place_and_says_why(tmp_path: Path) -> None:
    async def body() -> None:
        async with coordinator(tmp_path) as this:
            a = this.worker("a")
            running = asyncio.create_task(a.run(await this.address()))
            await this.heard("joined", name="a")
            a.say(profiled=pb.Profiled(layers=[pb.Layer(name="x")]))
            left = await this.heard("left", name="a")
            assert "forward_s: found 0 entries, required 1" in left["reason"]
            await running
            await this.call("Drain", pb.DrainRequest(token=this.secret))

    lives(body)


def test_a_port_in_use_is_an_error_that_names_the_address(tmp_path: Path) -> None:
    async def body() -> None:
        async with coordinator(tmp_path / "one") as this:
            address = await this.address()
            opened = open_run(tmp_path / "two", a_job(), resume=False, resume_step=None, now_s=1.0)
            with pytest.raises(PortInUse, match=address):
                await run.run(
                    a_job(), opened, RunOptions(address), ("t" * 20, tmp_path / "t"), this.say, make
                )
            opened.close()
            await this.call("Drain", pb.DrainRequest(token=this.secret))

    lives(body)

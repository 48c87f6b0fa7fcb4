"""One who joins a run that goes on is measured beside it, and taken in because that pays."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from coordinator import run
from coordinator.history import read_history
from coordinator.planning import make
from coordinator.resume import open_run, token
from coordinator.run import RunOptions
from protos import orchestrator_pb2 as pb
from scheduler.exit_codes import ExitCode

from .fake_worker import FakeWorker
from .job import a_job
from .test_service import Run


def test_a_joiner_is_taken_in_between_two_steps_with_its_layers_from_who_has_them(tmp_path: Path) -> None:
    async def body() -> None:
        job = a_job(parallelism="auto", steps="100000", eval_every="0", checkpoint="{every: 0}")
        opened = open_run(tmp_path, job, resume=False, resume_step=None, now_s=1.0)
        secret = token(tmp_path, None)
        this = Run(secret[0])
        options = replace(RunOptions("127.0.0.1:0", 1, heartbeat_s=0.2), reconsider_s=0.1)
        driving = asyncio.create_task(run.run(job, opened, options, secret, this.say, make))
        at = await this.address()
        first = FakeWorker("a", secret[0], step_s=0.02, layer_s=0.5)
        late = FakeWorker("late", secret[0], step_s=0.02, layer_s=0.5)
        works = [asyncio.create_task(first.run(at))]
        await this.heard("step")
        works.append(asyncio.create_task(late.run(at)))
        moved = await this.heard("recovery", way="move")
        assert "seen 3 times in a row" in moved["reason"]
        await this.heard("step", step=moved["step"] + 2)
        await this.call("Drain", pb.DrainRequest(token=this.secret))
        assert await driving is ExitCode.OK
        await asyncio.gather(*works)
        take = [c.take_plan for c in late.told if c.WhichOneof("body") == "take_plan"][-1]
        assert {d for s in take.sources for d in s.donors} == {"a"}
        assert not take.restore
        assert opened.store.ledger().ranges == ((0, len(this.all("step")) * job.global_batch),)
        opened.close()

    asyncio.run(asyncio.wait_for(body(), 150.0))
    history = read_history(tmp_path)
    assert history.plan is not None
    assert set(history.plan.devices) == {"a", "late"}
    looks = [e.body["moves"] for e in history.events if e.kind == "outlook"]
    assert looks.index(True) >= 2, "not at the first look that spoke for it"

"""A run that another coordinator takes over: one lease, two that never both commit, SQLite and Postgres."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from coordinator import run
from coordinator.planning import make
from coordinator.resume import OpenError, open_run, token
from coordinator.run import RunOptions
from coordinator.standing_by import verdict, wait_until_free
from coordinator.state_dir import StoreError, keep_elsewhere
from coordinator.store import Store, Superseded
from scheduler.exit_codes import ExitCode
from scheduler.lease import Lease

from .fake_worker import FakeWorker
from .job import a_job
from .postgres import postgres
from .test_service import Run
from .test_store import record
from .world import line_plan


@pytest.fixture(params=["sqlite", "postgres"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A store that two coordinators reach."""
    if request.param == "sqlite":
        yield str(tmp_path / "shared.sqlite")
        return
    directory = Path(tempfile.mkdtemp(prefix="isthmus-pg-"))  # a socket's path must be short
    try:
        with postgres(directory) as url:
            yield url
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def two(tmp_path: Path, where: str) -> tuple[Path, Path]:
    """State directories of two coordinators with one store and one token."""
    dirs = tmp_path / "first", tmp_path / "second"
    for d in dirs:
        keep_elsewhere(d, where)
    return dirs


def test_a_run_is_written_and_read_back_the_same_wherever_it_is(tmp_path: Path, where: str) -> None:
    first, second = two(tmp_path, where)
    opened = open_run(first, a_job(), resume=False, resume_step=None, now_s=100.0, holder="one")
    store = opened.store
    store.plan(line_plan(1, ["a"]), 1.0)
    store.plan(line_plan(1, ["a"]), 1.5)
    for step in range(4):
        store.step(record(step, loss=1.25), 0.5, 2.0)
    store.event("note", {"reason": "100 % of ?"}, 3.0)
    store.rewind(2, "b is gone", 4.0)
    store.step(record(2), 0.5, 5.0)
    opened.close()
    with Store(second, read_only=True) as other:
        last = other.last_commit()
        assert last is not None
        assert (last.done, last.plan) == (3, line_plan(1, ["a"]))
        assert other.ledger().ranges == ((0, 24),)
        assert other.attempt == 2
        (event,) = other.rows("SELECT * FROM events")
        assert "100 % of ?" in event["body"]


def test_who_is_superseded_can_write_nothing_and_what_was_written_before_counts(
    tmp_path: Path, where: str
) -> None:
    first, second = two(tmp_path, where)
    one = open_run(first, a_job(), resume=False, resume_step=None, now_s=100.0, holder="one")
    one.store.plan(line_plan(1, ["a"]), 1.0)
    one.store.step(record(0), 0.5, 101.0)
    with pytest.raises(OpenError, match="one drives the run") as e:
        open_run(second, a_job(), resume=True, resume_step=None, now_s=109.0, holder="two")
    assert e.value.code is ExitCode.STATE_DIR
    one.store.renew_lease(105.0, 10.0)
    with pytest.raises(OpenError):
        open_run(second, a_job(), resume=True, resume_step=None, now_s=114.0, holder="two")
    two_ = open_run(second, a_job(), resume=True, resume_step=None, now_s=116.0, holder="two")
    assert two_.taken_up is not None
    assert two_.taken_up.done == 1
    writes: list[Callable[[], None]] = [
        lambda: one.store.step(record(1), 0.5, 117.0),
        lambda: one.store.event("note", {}, 117.0),
        lambda: one.store.renew_lease(117.0, 10.0),
        lambda: one.store.end_attempt("failed", ExitCode.STALLED, "", 117.0),
        lambda: one.store.give_lease_back(),
    ]
    for write in writes:
        with pytest.raises(Superseded, match="two has taken the run over"):
            write()
    two_.store.step(record(1), 0.5, 118.0)
    assert two_.store.ledger().ranges == ((0, 16),)
    one.close()
    two_.close()


def test_whoever_stands_by_waits_as_long_as_the_lease_is_renewed(tmp_path: Path, where: str) -> None:
    first, second = two(tmp_path, where)
    one = open_run(first, a_job(), resume=False, resume_step=None, now_s=100.0, holder="one")
    now = [100.0]
    said: list[dict[str, Any]] = []

    def sleep(seconds: float) -> None:
        now[0] += seconds
        if now[0] < 130.0:
            one.store.renew_lease(now[0], 10.0)

    assert wait_until_free(second, 10.0, said.append, lambda: now[0], sleep) == "free"
    assert 135.0 <= now[0] <= 142.5, "a lease after the last renewal, and not before"
    assert [x["reason"] for x in said] == ["one drives the run"]
    one.store.end_attempt("finished", ExitCode.OK, "done", 150.0)
    assert wait_until_free(second, 10.0, said.append, lambda: now[0], sleep) == "over"
    one.close()


def test_verdicts() -> None:
    lease = Lease("one", 3, 50.0)
    assert verdict(None, None, 0.0) is None, "nobody has begun yet"
    assert verdict(None, lease, 49.0) is None
    assert verdict(None, lease, 50.0) == "free"
    assert verdict(0, lease, 0.0) == verdict(11, lease, 99.0) == "over"


def test_a_directory_keeps_to_its_store(tmp_path: Path) -> None:
    where = str(tmp_path / "b.sqlite")
    keep_elsewhere(tmp_path / "s", where)
    keep_elsewhere(tmp_path / "s", where)
    with pytest.raises(StoreError, match="elsewhere already"):
        keep_elsewhere(tmp_path / "s", "/c.sqlite")
    assert (tmp_path / "s" / "store").stat().st_mode & 0o777 == 0o600


def test_the_second_goes_on_where_the_first_stood_and_the_first_commits_nothing_more(
    tmp_path: Path, where: str
) -> None:
    """The first stands still behind a lease that runs out, and wakes up when the second drives."""
    first, second = two(tmp_path, where)

    async def body() -> None:
        job = a_job()
        one = open_run(first, job, resume=False, resume_step=None, now_s=1.0, holder="one", lease_s=5.0)
        secret = token(first, None)
        old = Run(secret[0])
        options = RunOptions("127.0.0.1:0", 2, heartbeat_s=0.2, regather_s=60.0)
        driving = asyncio.create_task(run.run(job, one, options, secret, old.say, make))
        workers = [FakeWorker(n, secret[0], hang_at_step=4) for n in ("a", "b")]
        stuck = [asyncio.create_task(w.run(await old.address())) for w in workers]
        await old.heard("step", step=4)
        two_ = open_run(second, job, resume=True, resume_step=None, now_s=2e9, holder="two")
        assert two_.taken_up is not None
        assert two_.taken_up.done == 4
        assert await driving is ExitCode.SUPERSEDED
        assert [x["step"] for x in old.all("step")] == [1, 2, 3, 4]
        await asyncio.gather(*stuck, return_exceptions=True)
        new = Run(secret[0])
        going_on = asyncio.create_task(run.run(job, two_, options, secret, new.say, make))
        fresh = [FakeWorker(n, secret[0], incarnation="2") for n in ("a", "b")]
        at = await new.address()
        await asyncio.gather(*(w.run(at) for w in fresh))
        assert await going_on is ExitCode.OK
        assert two_.store.ledger().ranges == ((0, 64),)
        for opened in (one, two_):
            opened.close()

    asyncio.run(asyncio.wait_for(body(), 120.0))

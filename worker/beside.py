"""Jobs done beside a rank's own thread, which goes on computing: lanes, each a thread with its jobs in order.

The loops of codecs hold no lock of Python's, so a lane costs the computation only the cores it takes. A
lane's jobs keep their order (urgent ones come first, in their own order), and what waits in it is bounded.
The first job that fails ends all lanes, and its error is raised on the rank's thread.

Knows jobs as calls; refuses to know tensors, codecs and frames.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from heapq import heappop, heappush
from types import TracebackType
from typing import Any, Generic, TypeVar, cast

QUEUED_BYTES = 256 << 20
"""Of what the jobs that wait in one lane hold; above it `submit` blocks. One larger job waits alone."""

T = TypeVar("T")


class Job(Generic[T]):
    """One call, and what it returned once it is `done`, which was at `done_s`."""

    __slots__ = ("done", "done_s", "lane", "n_bytes", "value", "work")

    def __init__(self, lane: _Lane, work: Callable[[], T], n_bytes: int) -> None:
        self.lane, self.work, self.n_bytes = lane, work, n_bytes
        self.done, self.done_s = False, 0.0
        self.value: T | None = None


class _Lane:
    """One thread's jobs. Guarded by the condition of the `Beside` it belongs to."""

    __slots__ = ("ahead", "held", "queue", "queued_bytes", "thread", "wanted")

    def __init__(self, ahead: int) -> None:
        self.ahead = ahead
        self.queue: list[tuple[bool, int, Job[Any]]] = []
        self.queued_bytes = 0
        self.held = 0
        """Results that nobody has taken."""
        self.wanted = 0
        """Who waits for a result that is not there: then the lane goes on, however much it holds."""
        self.thread: threading.Thread | None = None

    @property
    def rests(self) -> bool:
        return not self.queue or (0 < self.ahead <= self.held and not self.wanted)


class Beside:
    """The lanes of one step. A context: leaving it waits for their threads, and raises what failed first.

    `failed(error)` is called once, from any thread, to wake what the lanes and the rank's thread wait for
    elsewhere. Threads start with the first job of their lane.
    """

    def __init__(self, now_s: Callable[[], float], failed: Callable[[BaseException], None]) -> None:
        self._now_s, self._failed = now_s, failed
        self._changed = threading.Condition()
        self._lanes: dict[str, _Lane] = {}
        self._count = 0
        self._unfinished = 0
        self._error: BaseException | None = None
        self._closing = False

    def submit(
        self, lane: str, work: Callable[[], T], *, urgent: bool = False, n_bytes: int = 0, ahead: int = 0
    ) -> Job[T]:
        """Have the thread of `lane` do it. `n_bytes`: what it holds until then. `ahead`: how many results
        the lane may be ahead of those who take them; 0: any number."""
        with self._changed:
            found = self._lanes.get(lane)
            if found is None:
                found = self._lanes[lane] = _Lane(ahead)
                found.thread = threading.Thread(target=self._run, args=(found,), name=lane, daemon=True)
                found.thread.start()
            while self._error is None and found.queue and found.queued_bytes + n_bytes > QUEUED_BYTES:
                self._changed.wait()
            self._raise()
            job = Job(found, work, n_bytes)
            self._count += 1
            self._unfinished += 1
            heappush(found.queue, (not urgent, self._count, job))
            found.queued_bytes += n_bytes
            self._changed.notify_all()
        return job

    def result(self, job: Job[T], timeout_s: float | None = None) -> T:
        """Wait for what it returned; to be asked once a job. Raises what failed first in any lane, and
        TimeoutError."""
        lane = job.lane
        with self._changed:
            lane.wanted += 1
            if not job.done:
                self._changed.notify_all()
            there = self._changed.wait_for(lambda: job.done or self._error is not None, timeout_s)
            lane.wanted -= 1
            self._raise()
            if not there:
                raise TimeoutError
            lane.held -= 1
            self._changed.notify_all()
        value, job.value = cast(T, job.value), None
        return value

    def flush(self) -> None:
        """Wait until every job is done. Raises what failed first."""
        with self._changed:
            while self._unfinished and self._error is None:
                self._changed.wait()
            self._raise()

    def fail(self, error: BaseException) -> None:
        """End all lanes with this error, unless one came before."""
        with self._changed:
            first, self._error = self._error is None, self._error or error
            self._changed.notify_all()
        if first:
            self._failed(error)

    def __enter__(self) -> Beside:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self._lanes:
            self.fail(error)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for lane in self._lanes.values():
            assert lane.thread is not None
            lane.thread.join()
        if self._error is not None and self._error is not error:
            raise self._error  # whatever this thread met is what came of it

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self, lane: _Lane) -> None:
        while (job := self._next(lane)) is not None:
            try:
                value = job.work()
            except BaseException as error:  # the rank's thread raises it
                self.fail(error)
                return
            with self._changed:
                job.value, job.done, job.done_s = value, True, self._now_s()
                job.work = _nothing  # it may hold a tensor
                lane.held += 1
                self._unfinished -= 1
                self._changed.notify_all()
            del value, job

    def _next(self, lane: _Lane) -> Job[Any] | None:
        """The lane's next job; None: it is over."""
        with self._changed:
            while self._error is None and lane.rests:
                if self._closing:
                    return None
                self._changed.wait()
            if self._error is not None:
                return None
            job = heappop(lane.queue)[2]
            lane.queued_bytes -= job.n_bytes
            self._changed.notify_all()
            return job


def _nothing() -> None:
    return None

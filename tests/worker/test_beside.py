"""Jobs beside a rank's thread: order, bounds, errors that surface, threads that end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

import pytest

from worker import beside
from worker.beside import Beside


def make(failed: Callable[[BaseException], None] = lambda _: None) -> Beside:
    return Beside(lambda: 1.5, failed)


def test_a_lane_keeps_the_order_of_its_jobs_but_urgent_ones_come_first() -> None:
    done: list[int] = []
    gate = threading.Event()
    with make() as lanes:
        lanes.submit("encode", gate.wait)
        for i in range(6):
            lanes.submit("encode", partial(done.append, i), urgent=i % 2 == 1)
        gate.set()
        lanes.flush()
        assert done == [1, 3, 5, 0, 2, 4]


def test_who_waits_too_long_is_told() -> None:
    gate = threading.Event()
    with make() as lanes:
        job = lanes.submit("decode", gate.wait)
        with pytest.raises(TimeoutError):
            lanes.result(job, 0.01)
        gate.set()


def test_a_result_comes_from_another_thread_with_the_time_it_was_there() -> None:
    with make() as lanes:
        job = lanes.submit("decode", threading.get_ident)
        assert lanes.result(job) != threading.get_ident()
        assert job.done_s == 1.5


def test_a_lane_is_ahead_by_so_many_results_and_no_more_until_one_is_wanted() -> None:
    started: list[int] = []
    last = threading.Event()

    def job(i: int) -> Callable[[], int]:
        def run() -> int:
            started.append(i)
            return i

        return run

    with make() as lanes:
        jobs = [lanes.submit("decode", job(i), ahead=2) for i in range(5)]
        assert lanes.result(jobs[4]) == 4  # wanted out of its turn: the lane goes on to it
        assert started == [0, 1, 2, 3, 4]
        assert [lanes.result(j) for j in jobs[:4]] == [0, 1, 2, 3]
        first = [lanes.submit("other", job(i), ahead=1) for i in range(2)]
        lanes.submit("third", last.set)
        assert last.wait(10)
        assert lanes.result(first[0]) == 0
        assert lanes.result(first[1]) == 1


def test_what_waits_in_a_lane_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "QUEUED_BYTES", 10)
    gate, running, submitted = threading.Event(), threading.Event(), threading.Event()

    def blocks() -> None:
        running.set()
        gate.wait()

    with make() as lanes:
        lanes.submit("encode", blocks, n_bytes=99)  # alone: whatever it holds
        assert running.wait(10)
        lanes.submit("encode", lambda: None, n_bytes=10)

        def more() -> None:
            lanes.submit("encode", lambda: None, n_bytes=1)
            submitted.set()

        thread = threading.Thread(target=more)
        thread.start()
        assert not submitted.is_set()  # it cannot be: nothing has left the lane
        gate.set()
        assert submitted.wait(10)
        thread.join()
        lanes.flush()


def test_the_first_error_ends_all_lanes_and_is_raised_wherever_the_rank_asks() -> None:
    told: list[BaseException] = []
    error = ValueError("no number")
    woken = threading.Event()

    def failed(e: BaseException) -> None:
        told.append(e)
        woken.set()

    def fails() -> None:
        raise error

    def waits() -> None:  # as for a frame that will never come
        woken.wait()
        raise RuntimeError("aborted")

    def rank() -> None:
        with make(failed) as lanes:
            job = lanes.submit("decode", waits)
            lanes.submit("encode", fails)
            with pytest.raises(ValueError, match="no number"):
                lanes.result(job)
            with pytest.raises(ValueError, match="no number"):
                lanes.flush()
            lanes.submit("encode", fails)

    with pytest.raises(ValueError, match="no number") as raised:
        rank()
    assert raised.value is error
    assert told == [error]


def test_an_error_of_the_ranks_thread_ends_the_lanes_and_stays_itself() -> None:
    woken = threading.Event()
    before = threading.active_count()

    def rank() -> None:
        with make(lambda _: woken.set()) as lanes:
            lanes.submit("decode", woken.wait)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        rank()
    assert threading.active_count() == before


def test_what_follows_from_a_lanes_error_on_the_ranks_thread_is_not_what_is_raised() -> None:
    woken = threading.Event()

    def fails() -> None:
        raise ValueError("the cause")

    def rank() -> None:
        with make(lambda _: woken.set()) as lanes:
            lanes.submit("encode", fails)
            assert woken.wait(10)
            raise RuntimeError("what came of it")

    with pytest.raises(ValueError, match="the cause"):
        rank()


def test_lanes_that_nobody_used_start_no_thread_and_tell_nobody() -> None:
    before = threading.active_count()
    with make() as lanes:
        assert threading.active_count() == before
        lanes.flush()

    def told(error: BaseException) -> None:
        raise AssertionError(error)

    with pytest.raises(KeyError), make(told):
        raise KeyError("mine")

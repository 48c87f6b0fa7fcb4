"""Codecs run beside the computation: the bits are the same as inline, and errors say what could not go."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

import pytest
import torch
from torch import Tensor

from compression.codec import Encoded, KBitCodec, Key
from scheduler.timeline import COMPUTE
from tests.worker.pipelines import Rank, in_threads, make_job, make_plan, make_ranks, train
from tests.worker.test_compressed import KBIT4, KBIT8, compressed
from worker.beside import Beside, Job, _Lane
from worker.stage import Stage
from worker.step import Diverged
from worker.transport import TransportAborted, TransportTimeout

T = TypeVar("T")
CODECS = {
    "kbit": (KBIT4, KBIT8 + ",rounding=stochastic", "feedback:bits=4,group=32"),
    "tile": ("tile", "fp16", "topk:per_mille=100"),
    "acsgd": ("acsgd:group=32", KBIT8 + ",rounding=stochastic", KBIT8 + ",rounding=stochastic"),
}


class Inline(Beside):
    """Every job on the rank's own thread: what is sent at once, what is expected when it is asked for."""

    def submit(
        self, lane: str, work: Callable[[], T], *, urgent: bool = False, n_bytes: int = 0, ahead: int = 0
    ) -> Job[T]:
        job: Job[T] = Job(_Lane(ahead), work, n_bytes)
        assert lane.startswith("decode") == bool(ahead)
        assert not (urgent and ahead)
        if not ahead:
            job.value, job.done = work(), True
        return job

    def result(self, job: Job[T], timeout_s: float | None = None) -> T:
        del timeout_s
        return cast(T, job.value) if job.done else job.work()

    def flush(self) -> None:
        pass


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe"])
@pytest.mark.parametrize("codecs", CODECS)
def test_losses_and_weights_are_the_same_bits_as_inline(
    codecs: str, schedule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job()
    plan = compressed(make_plan(job, 3, (2, 2), schedule), *CODECS[codecs])
    run = train(job, plan, steps=4)
    monkeypatch.setattr("worker.peers.Beside", Inline)
    inline = train(job, plan, steps=4)
    assert run.losses == inline.losses
    ours, theirs = run.weights(), inline.weights()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    counted = [[(u.kind, u.peer, u.sent_bytes, u.resends) for u in r[-1].links] for r in run.results]
    assert counted == [
        [(u.kind, u.peer, u.sent_bytes, u.resends) for u in r[-1].links] for r in inline.results
    ]


def test_a_stage_computes_the_next_micro_batch_while_it_encodes_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = make_job()
    ranks = make_ranks(job, compressed(make_plan(job, 2, (4,)), KBIT4))
    second, encode, forward = threading.Event(), KBitCodec.encode, Stage.forward

    def waits(self: KBitCodec, x: Tensor, key: Key) -> Encoded:
        assert second.wait(60), "the second forward did not begin while the first result was encoded"
        return encode(self, x, key)

    def tells(self: Stage, mb: int, x: Tensor, *more: Any) -> Tensor:
        if self.is_first and mb == 1:
            second.set()
        return forward(self, mb, x, *more)

    monkeypatch.setattr(KBitCodec, "encode", waits)
    monkeypatch.setattr(Stage, "forward", tells)
    first, last = in_threads(ranks, Rank.run_first)
    spans = [s for s in first.spans if s.kind == "encode"]
    assert [s.mb for s in spans] == [0, 1, 2, 3]
    assert all(s.n_bytes and s.peer == 1 for s in spans)
    (forward_1,) = (s for s in first.spans if s.kind == "forward" and s.mb == 1)
    assert forward_1.start_s <= spans[0].end_s
    assert [s.mb for s in last.spans if s.kind == "decode" and s.n_bytes == spans[0].n_bytes] == [0, 1, 2, 3]


def test_what_is_decoded_ahead_is_decoded_while_the_stage_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job()
    ranks = make_ranks(job, compressed(make_plan(job, 2, (4,), "gpipe"), KBIT4))
    third, decode, forward = threading.Event(), KBitCodec.decode, Stage.forward
    decoded: list[int] = []

    def tells(self: KBitCodec, encoded: Encoded, key: Key) -> Tensor:
        decoded.append(1)
        if len(decoded) == 2:
            third.set()
        return decode(self, encoded, key)

    def waits(self: Stage, mb: int, x: Tensor, *more: Any) -> Tensor:
        if self.is_last and mb == 0:
            assert third.wait(60), "the second tensor was not decoded while the first was computed with"
        return forward(self, mb, x, *more)

    monkeypatch.setattr(KBitCodec, "decode", tells)
    monkeypatch.setattr(Stage, "forward", waits)
    in_threads(ranks, Rank.run_first)
    assert len(decoded) == 4


def test_a_tensor_that_is_written_to_while_it_is_encoded_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job()
    ranks = make_ranks(job, compressed(make_plan(job, 2, (4,)), KBIT4))
    written, encode, forward = threading.Event(), KBitCodec.encode, Stage.forward

    def waits(self: KBitCodec, x: Tensor, key: Key) -> Encoded:
        assert written.wait(60)
        return encode(self, x, key)

    def writes(self: Stage, mb: int, x: Tensor, *more: Any) -> Tensor:
        if self.is_first and mb == 1:
            self.last_y += 1  # type: ignore[attr-defined]
            written.set()
        self.last_y = forward(self, mb, x, *more)  # type: ignore[attr-defined]
        return self.last_y  # type: ignore[attr-defined, no-any-return]

    monkeypatch.setattr(KBitCodec, "encode", waits)
    monkeypatch.setattr(Stage, "forward", writes)
    with pytest.raises(RuntimeError, match="activation to rank 1: it was written to while it was encoded"):
        in_threads(ranks, Rank.run_first)


@pytest.mark.parametrize("gradient", ["", KBIT8])
def test_a_rank_that_waits_for_a_frame_learns_that_its_own_could_not_be_encoded(gradient: str) -> None:
    job = make_job()
    ranks = make_ranks(job, compressed(make_plan(job, 2, (4,)), KBIT4, gradient))
    with torch.no_grad():
        next(ranks[0].stage.layers[1].parameters()).fill_(float("nan"))
    # Rank 1 does not run: nothing will ever come from it, and only the error ends rank 0's wait.
    with pytest.raises(Diverged, match=r"stage 0 \(rank 0\), activation behind layer 1 of micro-batch"):
        in_threads(ranks[:1], Rank.run_first)
    assert not [t for t in threading.enumerate() if t.name.startswith(("encode", "decode"))]
    assert ranks[0].stage.in_flight == 0


def test_an_abort_from_outside_ends_lanes_and_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job()
    ranks = make_ranks(job, compressed(make_plan(job, 2, (4,)), KBIT4, KBIT8))
    forward = Stage.forward

    def aborts(self: Stage, mb: int, x: Tensor, *more: Any) -> Tensor:
        y = forward(self, mb, x, *more)
        if mb == 1:
            ranks[0].context.transport.abort("a new plan came")
        return y

    monkeypatch.setattr(Stage, "forward", aborts)
    with pytest.raises(TransportAborted, match="a new plan came"):
        in_threads(ranks[:1], Rank.run_first)
    assert not [t for t in threading.enumerate() if t.name.startswith(("encode", "decode"))]


def test_a_frame_that_does_not_come_is_named_also_where_a_lane_waits_for_it() -> None:
    job = make_job()
    ranks = make_ranks(job, compressed(make_plan(job, 2, (4,)), KBIT4, KBIT8), timeout_s=0.05)
    with pytest.raises(TransportTimeout, match=r"waited 0\.05 s for activation \(step 0, micro-batch 0"):
        in_threads(ranks[1:], Rank.run_first)


def test_compute_spans_of_a_compressed_step_do_not_overlap() -> None:
    job = make_job()
    run = train(job, compressed(make_plan(job, 2, (2, 2)), *CODECS["kbit"]), steps=1)
    for (result,) in run.results:
        busy = sorted(
            (s for s in result.spans if s.kind in COMPUTE | {"wait", "reduce"}), key=lambda s: s.start_s
        )
        assert all(a.end_s <= b.start_s for a, b in itertools.pairwise(busy))
        assert 0 <= result.late_s <= result.duration_s

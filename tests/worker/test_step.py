"""One step: what it reports, when it gives up, and that a step that fails changes no weight."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from scheduler.timeline import COMPUTE, Span
from tests.worker.pipelines import Rank, in_threads, make_job, make_plan, make_ranks, tokens_of, train
from worker.agreement import Committee, Vote
from worker.model import Head
from worker.peers import Peers
from worker.recorder import Recorder
from worker.step import Diverged, run_eval, run_step
from worker.transport import Frame, FrameError, FrameKey, TransportAborted, TransportTimeout


def kinds(spans: Sequence[Span]) -> list[tuple[str, int]]:
    return [(s.kind, s.mb) for s in spans if s.kind in ("forward", "backward", "optimizer")]


def test_a_rank_computes_in_the_order_of_its_plan() -> None:
    job = make_job()
    run = train(job, make_plan(job, 2, (4,)), steps=1)
    first, last = run.results[0][0], run.results[1][0]
    warm = [("forward", 0), ("forward", 1), ("backward", 0), ("forward", 2), ("backward", 1)]
    rest = [("forward", 3), ("backward", 2), ("backward", 3), ("optimizer", -1), ("optimizer", -1)]
    assert kinds(first.spans) == warm + rest
    assert kinds(last.spans)[:4] == [("forward", 0), ("backward", 0), ("forward", 1), ("backward", 1)]


def test_spans_of_the_processor_do_not_overlap_and_lie_in_the_step() -> None:
    job = make_job()
    run = train(job, make_plan(job, 2, (3, 1)), steps=2)
    for results in run.results:
        for result in results:
            busy = sorted(
                (s for s in result.spans if s.kind in COMPUTE | {"wait", "reduce", "send"}),
                key=lambda s: (s.start_s, s.end_s),
            )
            assert busy[0].start_s >= 0
            assert busy[-1].end_s <= result.duration_s
            assert all(a.end_s <= b.start_s for a, b in itertools.pairwise(busy))
            assert 0 <= result.late_s <= result.duration_s


def test_bytes_and_tokens_are_counted() -> None:
    job = make_job()
    run = train(job, make_plan(job, 2, (3, 1)), steps=1)
    boundary = job.profiled_micro_batch * job.sequence_length * job.model.hidden * 4
    assert job.model.vocab is not None
    tied = job.model.vocab * job.model.hidden * 4
    for rank, (result,) in zip(run.ranks, run.results, strict=True):
        n = run.ranks[0].context.plan.micro_batches[rank.context.replica]
        n_gradient = sum(p.numel() for ps in rank.stage.owned for p in ps) * 4
        exact = n * boundary + n_gradient + tied  # two replicas: half away, half back
        assert result.sent_bytes == pytest.approx(exact, abs=4 * 2 * job.n_layers)  # odd halves
        assert result.raw_bytes == result.sent_bytes
        is_last = rank.stage.is_last
        assert result.tokens == (n * job.profiled_micro_batch * job.sequence_length if is_last else 0)
        assert (result.loss_sum > 0) == is_last


def test_the_clock_is_the_one_that_is_given() -> None:
    job = make_job()
    (rank,) = make_ranks(job, make_plan(job, 1, (4,)))
    ticks = itertools.count(100)
    result = rank.run_step(0, clock=lambda: float(next(ticks)))
    assert all(s.start_s == int(s.start_s) and s.duration_s == 1 for s in result.spans)
    assert result.duration_s == 2 * len(result.spans) + 1


def weights_of(rank: Rank) -> list[Tensor]:
    return [p.detach().clone() for ps in rank.stage.owned for p in ps]


def test_a_loss_that_is_not_finite_names_step_rank_and_micro_batch_and_changes_nothing() -> None:
    job = make_job()
    ranks = make_ranks(job, make_plan(job, 2, (4,)))
    head = ranks[1].stage.layers[-1]
    assert isinstance(head, Head)
    with torch.no_grad():
        head.norm.weight[0] = float("nan")
    before = [weights_of(rank) for rank in ranks]
    said: list[str] = []

    def step(rank: Rank) -> None:
        with pytest.raises(Diverged) as e:
            rank.run_step(5)
        said.append(str(e.value))

    in_threads(ranks, step)
    assert any(s.startswith("step 5, rank 1, micro-batch 0: found the loss nan") for s in said)
    for rank, weights in zip(ranks, before, strict=True):
        now = weights_of(rank)
        assert all(
            torch.equal(
                a,
                b,
            )
            or a.isnan().any()
            for a, b in zip(weights, now, strict=True)
        )
        assert rank.stage.in_flight == 0
        assert all(p.grad is None for ps in rank.stage.owned for p in ps)


def test_a_gradient_that_is_not_finite_stops_every_rank_before_its_weights_change() -> None:
    job = make_job()
    ranks = make_ranks(job, make_plan(job, 2, (4,)))
    block = ranks[0].stage.layers[1]
    next(block.parameters()).register_hook(lambda g: g * float("inf"))  # type: ignore[no-untyped-call]
    before = [weights_of(rank) for rank in ranks]
    said: list[str] = []

    def step(rank: Rank) -> None:
        with pytest.raises(Diverged) as e:
            rank.run_step(0)
        said.append(str(e.value))

    in_threads(ranks, step)
    assert sorted(s.split(":")[0] for s in said) == ["step 0, rank 0", "step 0, rank 1"]
    for rank, weights in zip(ranks, before, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(weights, weights_of(rank), strict=True))


def test_a_peer_that_sends_nothing_is_named_at_the_deadline() -> None:
    job = make_job()
    ranks = make_ranks(job, make_plan(job, 2, (4,)), timeout_s=0.01)
    with pytest.raises(TransportTimeout, match=r"activation.*step 0, micro-batch 0.*from rank 0"):
        ranks[1].run_step(0)


def test_an_abort_ends_a_step_that_waits() -> None:
    job = make_job()
    ranks = make_ranks(job, make_plan(job, 2, (4,)))
    timer = threading.Timer(0.05, ranks[0].context.transport.abort, ("worker d0.1 is lost",))
    timer.start()
    with pytest.raises(TransportAborted, match=r"worker d0\.1 is lost"):
        ranks[0].run_step(0)
    timer.join()
    assert ranks[0].stage.in_flight == 0


def test_no_rank_steps_before_the_last_has_voted_and_a_step_that_is_given_up_can_be_done_again() -> None:
    job = make_job()
    plan = make_plan(job, 2, (2, 2))
    ranks, undisturbed = make_ranks(job, plan), make_ranks(job, plan)
    before = [weights_of(rank) for rank in ranks]
    # The last rank reduces its gradients, but its vote never arrives.
    ranks[3].context = replace(ranks[3].context, agreement=Silent(ranks[3].committee))

    def give_up(rank: Rank) -> None:
        with pytest.raises(TransportAborted, match=r"d1\.1 is lost"):
            rank.run_step(0)

    in_threads(ranks, give_up)
    for rank, weights in zip(ranks, before, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(weights, weights_of(rank), strict=True))
        assert all(p.grad is None for ps in rank.stage.owned for p in ps)
    again = make_ranks(job, plan)  # another plan's transports and votes, the same weights
    for rank, old in zip(again, ranks, strict=True):
        rank.stage, rank.optimizer = old.stage, old.optimizer
    in_threads(again, Rank.run_first)
    in_threads(undisturbed, Rank.run_first)
    for rank, other in zip(again, undisturbed, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(weights_of(rank), weights_of(other), strict=True))


@dataclass
class Silent:
    """A rank that is lost once it has reduced, before it could vote."""

    committee: Committee

    def commit(self, vote: Vote) -> float:
        assert vote.tokens > 0
        self.committee.abort("d1.1 is lost")
        raise TransportAborted("d1.1 is lost")


def frame_of(x: Tensor, shape: tuple[int, ...], dtype: str = "float32", codec: str = "identity") -> Frame:
    payload = (x.flatten().view(torch.uint8).numpy().data,)
    return Frame(FrameKey("activation", 0, 0, 0), 1, 1, codec, dtype, shape, payload)


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (
            frame_of(torch.zeros(2, 8, 16), (2, 8, 16)),
            r"found float32 \(2, 8, 16\); required float32 \(2, 8, 32\)",
        ),
        (frame_of(torch.zeros(2, 8, 32), (2, 8, 32), "int64"), r"found int64 .* required float32"),
        (frame_of(torch.zeros(2, 8, 31), (2, 8, 32)), r"found 1984 bytes; required 2048"),
        (frame_of(torch.zeros(2, 8, 32), (2, 8, 32), codec="zip"), "found a payload of codec 'zip'"),
    ],
)
def test_a_tensor_that_is_not_what_it_must_be_is_refused(frame: Frame, said: str) -> None:
    job = make_job()
    ranks = make_ranks(job, make_plan(job, 2, (4,)))
    ranks[0].context.transport.send(frame)
    with pytest.raises(
        FrameError, match=r"activation of step 0, micro-batch 0, tag 0 from rank 0: .*" + said
    ):
        ranks[1].run_step(0)


def test_a_batch_of_the_wrong_shape_is_refused() -> None:
    job = make_job()
    (rank,) = make_ranks(job, make_plan(job, 1, (4,)))
    with pytest.raises(
        ValueError, match=r"found a batch of torch\.int64 \(2, 8\); required torch\.int64 \(2, 9\)"
    ):
        run_step(
            rank.context,
            rank.stage,
            rank.optimizer,
            0,
            lambda _: torch.zeros(2, 8, dtype=torch.int64),
            lambda: 0.0,
        )


def test_only_time_spent_blocked_is_a_wait_and_what_had_arrived_is_late() -> None:
    job = make_job()
    ranks = make_ranks(job, make_plan(job, 2, (4,)))
    ticks = itertools.count()
    recorder = Recorder(1, lambda: float(next(ticks)))
    sender = Peers(ranks[0].context, 0, Recorder(0, lambda: 0.0))
    sender.send("activation", 1, torch.ones(3), mb=0)
    receiver = Peers(ranks[1].context, 0, recorder)
    assert torch.equal(receiver.receive("activation", 0, (3,), torch.float32, mb=0), torch.ones(3))
    assert [s.kind for s in recorder.spans] == ["decode"]
    assert recorder.late_s == 1.0  # one tick of the clock, though the tensor was there


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("stages", [1, 3])
def test_evaluation_is_forward_only_over_each_sample_once(stages: int, replicas: int) -> None:
    job = make_job()
    tokens = torch.cat([tokens_of(job, 0), tokens_of(job, 1)])[:7]  # three micro-batches of 2, one of 1

    def evaluate(rank: Rank) -> tuple[float, int]:
        return run_eval(rank.context, rank.stage, 0, 7, lambda ids: tokens[list(ids)], lambda: 0.0)

    plan = make_plan(job, stages, (4 // replicas,) * replicas)
    done = in_threads(make_ranks(job, plan), evaluate)
    (whole,) = make_ranks(job, make_plan(job, 1, (4,)))
    required = whole.stage.evaluate(tokens[:, :-1], tokens[:, 1:]).item()
    assert sum(loss for loss, _ in done) == pytest.approx(required, rel=1e-6)
    assert sum(n for _, n in done) == 7 * job.sequence_length
    assert all(result == (0.0, 0) for r, result in enumerate(done) if plan.stage_of(r) < stages - 1)


def test_bf16_trains_over_boundaries_of_half_the_bytes() -> None:
    job = make_job("llama", precision="bf16")
    run = train(job, make_plan(job, 2, (4,)), steps=8)
    assert run.losses[-1] < run.losses[0]
    full = train(make_job("llama"), make_plan(job, 2, (4,)), steps=1)
    last = (run.results[1][0].sent_bytes, full.results[1][0].sent_bytes)
    assert last[0] * 2 == last[1]

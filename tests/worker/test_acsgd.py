"""Steps that send changes of activations: bytes, both ends equal, and recovery in the middle of a run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from compression.codec import ActivationDeltaCodec
from compression.spec import AcsgdSpec
from tests.worker.pipelines import Rank, Run, in_threads, make_job, make_plan, make_ranks
from tests.worker.test_compressed import compressed
from worker.step import StepResult

SPEC = AcsgdSpec(bits=4, group=32)
STEPS = 12


def run(name: str, before_step: Callable[[Rank, int], None] | None = None, lr: float = 3e-3) -> Run:
    """A data set of 16 samples, two steps an epoch, over three stages."""
    job = make_job()
    job = job.model_copy(update={"optimizer": job.optimizer.model_copy(update={"lr": lr})})
    plan = make_plan(job, 3, (4,))
    ranks = make_ranks(job, compressed(plan, name, "kbit:group=32,rounding=stochastic") if name else plan)

    def work(rank: Rank) -> list[StepResult]:
        rank.n_samples, rank.measure_errors = 16, True
        done = []
        for step in range(STEPS):
            if before_step is not None:
                before_step(rank, step)
            done.append(rank.run_step(step))
        return done

    return Run(ranks, in_threads(ranks, work))


def end(rank: Rank, peer: int, sends: bool) -> ActivationDeltaCodec:
    codecs = rank.context.codecs
    codec = codecs.sender("activation", peer) if sends else codecs.receiver("activation", peer)
    assert isinstance(codec, ActivationDeltaCodec)
    return codec


def require_equal_ends(done: Run) -> None:
    for first in (0, 1):
        sender, receiver = end(done.ranks[first], first + 1, True), end(done.ranks[first + 1], first, False)
        assert len(sender.remembered) == 16
        assert sender.remembered == receiver.remembered


def resends(done: Run) -> int:
    return sum(use.resends for results in done.results for result in results for use in result.links)


def activation_bytes(done: Run, step: int) -> int:
    return sum(use.sent_bytes for use in done.results[0][step].links if use.kind == "activation")


def test_the_first_epoch_is_whole_and_later_ones_are_changes_in_four_bits() -> None:
    plain, done = run(""), run(SPEC.name)
    shape = (2, 8, 32)
    assert activation_bytes(done, 1) == 4 * SPEC.first_wire_bytes(shape, 4)
    assert activation_bytes(done, 2) == 4 * SPEC.wire_bytes(shape, 4)
    assert resends(done) == 0
    require_equal_ends(done)
    torch.testing.assert_close(torch.tensor(done.losses), torch.tensor(plain.losses), rtol=0.01, atol=0)


def test_at_a_standstill_the_receiver_s_activation_becomes_the_true_one() -> None:
    """Learning rate next to nothing, begun in eight bits: each visit comes nearer to the truth."""
    done = run("acsgd:bits=3,group=32,first=8,store=16", lr=1e-12)
    error = [
        next(use.relative_error for use in done.results[0][step].links if use.relative_error)
        for step in range(STEPS)
    ]
    assert error[0] > 0.003
    assert error[2] < error[0] / 3
    assert max(error[-2:]) < 3e-4  # what float16 buffers can hold
    direct = run("kbit:bits=3,group=32", lr=1e-12)
    assert min(use.relative_error for use in direct.results[0][-1].links if use.kind == "activation") > 0.1


@pytest.mark.parametrize("side", ["sender", "receiver"])
def test_one_side_that_lost_its_memory_is_sent_all_again_and_the_loss_does_not_jump(side: str) -> None:
    def forget(rank: Rank, step: int) -> None:
        if step == 6 and rank.context.rank == (0 if side == "sender" else 1):
            end(rank, 1 if side == "sender" else 0, side == "sender").reset()

    done, undisturbed = run(SPEC.name, forget), run(SPEC.name)
    require_equal_ends(done)
    # A sender that forgot says so by sending whole; a receiver has to ask: 4 micro-batches a step, an epoch.
    assert resends(done) == (0 if side == "sender" else 8)
    assert done.losses[:6] == undisturbed.losses[:6]
    torch.testing.assert_close(torch.tensor(done.losses), torch.tensor(undisturbed.losses), rtol=0.01, atol=0)


def test_a_step_that_failed_half_way_and_is_run_again_leaves_both_ends_equal() -> None:
    """The sender had moved on to changes that the receiver never read."""

    def encode_in_vain(rank: Rank, step: int) -> None:
        if step == 6 and rank.context.rank == 0:
            codec = end(rank, 1, True)
            for sample in range(0, 16, 3):
                codec.encode(torch.randn(1, 8, 32), (sample,))

    done = run(SPEC.name, encode_in_vain)
    require_equal_ends(done)
    assert resends(done) > 0


def test_a_new_plan_begins_with_nothing_remembered_at_either_end() -> None:
    job = make_job()
    plan = compressed(make_plan(job, 3, (4,)), SPEC.name)
    first = make_ranks(job, plan)
    in_threads(first, Rank.run_first)
    moved = make_ranks(job, plan)  # what taking a plan makes: other codecs
    assert all(not end(moved[r], r + 1, True).remembered for r in (0, 1))
    assert all(not end(moved[r], r - 1, False).remembered for r in (1, 2))

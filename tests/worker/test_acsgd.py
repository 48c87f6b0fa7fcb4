"""Steps that send changes of activations: bytes, both ends equal, and recovery in the middle of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from compression.codec import ActivationDeltaCodec
from compression.spec import AcsgdSpec
from tests.worker.pipelines import Rank, Run, in_threads, make_job, make_plan, make_ranks
from tests.worker.test_compressed import compressed
from worker.checkpoint import from_bytes, load_state, load_weights, stage_files
from worker.step import StepResult
from worker.transport import Frame, FrameKey, Transport, TransportStats, TransportTimeout

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


def moved(ranks: list[Rank], partition: tuple[tuple[int, int], ...]) -> list[Rank]:
    """The next plan's ranks: the same weights and optimizer, other codecs, as a worker makes them."""
    job, plan = ranks[0].context.job, ranks[0].context.plan
    files: dict[str, bytes] = {}
    for rank in ranks:
        files |= stage_files(rank.stage, rank.optimizer, plan.partition[rank.context.stage][0])
    after = make_ranks(job, replace(plan, version=plan.version + 1, partition=partition))
    for rank in after:
        for i, layer in enumerate(rank.stage.layers):
            name = f"layer-{partition[rank.context.stage][0] + i:04d}"
            load_weights(layer, from_bytes(files[f"{name}.safetensors"], name), name)
            load_state(rank.optimizer, i, from_bytes(files[f"{name}.optimizer.safetensors"], name), name)
    return after


def steps(ranks: list[Rank], start: int, stop: int) -> Run:
    def work(rank: Rank) -> list[StepResult]:
        rank.n_samples = 16
        return [rank.run_step(step) for step in range(start, stop)]

    return Run(ranks, in_threads(ranks, work))


@pytest.fixture(scope="module")
def undisturbed() -> Run:
    return run(SPEC.name)


def test_a_moved_stage_begins_anew_at_both_ends_and_the_loss_does_not_jump(undisturbed: Run) -> None:
    plan = undisturbed.ranks[0].context.plan
    ranks = make_ranks(undisturbed.ranks[0].context.job, plan)
    assert steps(ranks, 0, 6).losses == undisturbed.losses[:6]
    other = ((0, 2), (2, 3), (3, 5))
    assert plan.partition != other
    after = steps(moved(ranks, other), 6, STEPS)
    require_equal_ends(after)
    assert resends(after) == 0, "both ends forgot, so nobody has to ask"
    shape = (2, 8, 32)
    sent = [activation_bytes(after, i) for i in range(3)]
    assert sent == [4 * SPEC.first_wire_bytes(shape, 4)] * 2 + [4 * SPEC.wire_bytes(shape, 4)]
    losses = torch.tensor(undisturbed.losses[6:])
    torch.testing.assert_close(torch.tensor(after.losses), losses, rtol=0.01, atol=0)


class Unsteady(Transport):
    """Hands activations over twice, or behind the one that follows, or loses one."""

    def __init__(self, under: Transport) -> None:
        self._under, self._late = under, list[Frame]()
        self.seen: Counter[str] = Counter()
        self.loses_at = -1
        """Step whose last activation is lost."""

    def send(self, frame: Frame) -> None:
        if frame.key.kind != "activation":
            return self._under.send(frame)
        if frame.key.step == self.loses_at and frame.key.mb == 3:
            self.seen["lost"] += 1
        elif frame.key.mb == 0 and frame.key.step % 2:
            self.seen["late"] += 1
            self._late.append(frame)
        else:
            for again in (frame, *self._late, *([frame] if frame.key.mb == 2 else [])):
                self._under.send(again)
            self.seen["twice"] += frame.key.mb == 2
            self._late.clear()
        return None

    def receive(self, key: FrameKey, timeout_s: float) -> Frame:
        return self._under.receive(key, timeout_s)

    def ready(self, key: FrameKey) -> bool:
        return self._under.ready(key)

    def abort(self, reason: str) -> None:
        self._under.abort(reason)

    def stats(self) -> TransportStats:
        return self._under.stats()

    def close(self) -> None:
        self._under.close()


def unsteady(undisturbed: Run, timeout_s: float = 60.0) -> tuple[list[Rank], Unsteady]:
    context = undisturbed.ranks[0].context
    ranks = make_ranks(context.job, context.plan, timeout_s)
    link = Unsteady(ranks[0].context.transport)
    ranks[0].context = replace(ranks[0].context, transport=link)
    return ranks, link


def test_frames_that_come_twice_or_behind_the_next_change_nothing(undisturbed: Run) -> None:
    ranks, link = unsteady(undisturbed)
    done = steps(ranks, 0, STEPS)
    assert link.seen == {"late": STEPS // 2, "twice": STEPS}
    assert done.losses == undisturbed.losses
    assert resends(done) == 0
    require_equal_ends(done)


def test_a_lost_frame_ends_the_step_which_is_done_again_by_ends_that_both_forgot(undisturbed: Run) -> None:
    ranks, link = unsteady(undisturbed, timeout_s=3.0)
    link.loses_at = 6
    assert steps(ranks, 0, 6).losses == undisturbed.losses[:6]
    with pytest.raises(TransportTimeout, match=r"activation \(step 6, micro-batch 3"):
        steps(ranks, 6, 7)
    assert link.seen["lost"] == 1
    after = steps(moved(ranks, ranks[0].context.plan.partition), 6, STEPS)
    require_equal_ends(after)
    losses = torch.tensor(undisturbed.losses[6:])
    torch.testing.assert_close(torch.tensor(after.losses), losses, rtol=0.01, atol=0)

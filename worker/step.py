"""One training step: a single match over the actions of a rank, with tensors.

The order is the plan's, the arithmetic the stage's; this puts them together, keeps the deadlines and
writes down when everything happened. Reads no clock but the one it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite

import torch
from torch import Tensor, nn

from compression.codec import Key
from scheduler.link_use import LinkUse
from scheduler.schedule import (
    Action,
    Backward,
    FinishOuterStep,
    Forward,
    OptimizerStep,
    Recv,
    ReduceGradients,
    Send,
    StartOuterStep,
)
from scheduler.timeline import Span, SpanKind
from worker.agreement import Vote
from worker.diverged import Diverged
from worker.faults import Phase
from worker.grad_norm import clip, layer_squares
from worker.link_codecs import LinkCodecs
from worker.model.documents import documents_of
from worker.optimizer import StageOptimizer, learning_rate
from worker.outer import OuterOptimizer
from worker.peers import Peers
from worker.recorder import Recorder
from worker.reduce import GradientReduction
from worker.sequence_shards import shard_of
from worker.sharded import ShardedSum
from worker.spot_check import StepCheck
from worker.stage import Stage
from worker.step_context import StepContext
from worker.tied import exchange_tied

__all__ = [
    "Batch",
    "Diverged",
    "LinkCodecs",
    "StepContext",
    "StepResult",
    "boundary_dtype",
    "run_eval",
    "run_step",
]

Batch = Callable[[int], Tensor]
"""Micro-batch of the replica -> its tokens, int64 (plan.micro_batch, sequence_length + 1)."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a rank has to tell of a step. `spans` count from the start of the step on this rank."""

    loss_sum: float
    """Cross entropy summed over the tokens of this rank's micro-batches; 0 but in a last stage."""
    tokens: int
    """How many tokens `loss_sum` sums over."""
    grad_norm: float
    """Of the whole model's gradient before clipping, or of its momentum where that is what is exchanged; the
    same on every rank of a pipeline."""
    spans: tuple[Span, ...]
    duration_s: float
    sent_bytes: int
    """Payloads handed to the transport."""
    raw_bytes: int
    """What they were before the codec."""
    late_s: float
    """Time in which this rank waited for a tensor that had arrived."""
    links: tuple[LinkUse, ...]
    """By kind of frame and peer."""


def boundary_dtype(precision: str) -> torch.dtype:
    """The type of what crosses a stage boundary, by the job's precision."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def run_step(
    context: StepContext,
    stage: Stage,
    optimizer: StageOptimizer,
    step: int,
    batch: Batch,
    clock: Callable[[], float],
    samples: Callable[[int], Key] | None = None,
    measure_errors: bool = False,
    outer: OuterOptimizer | None = None,
) -> StepResult:
    """Run the rank's actions of step `step` (0 .. job.steps - 1).

    `batch` is asked in first and last stage only, in all where documents are kept apart. `samples(mb)` are
    the ids of a micro-batch's samples, for codecs that remember them; `measure_errors`: look at what codecs
    change. Every micro-batch weighs
    1 / (global_batch x sequence_length) of its summed cross entropy, so the mean over the global batch is
    exact whatever the replicas' shares; with local steps, whose plans need an `outer` optimizer, each
    replica's mean is over its own samples.

    Weights change only once every rank has voted for the step (`context.agreement`). Raises Diverged before
    any weight is changed, and what the transport and the agreement raise; the stage then holds no
    activations and no gradients any more, and the step can be done again.
    """
    try:
        recorder = Recorder(context.rank, clock, measure_errors)
        with stage.copies_held():
            return _Step(context, stage, optimizer, step, batch, recorder, samples, outer).run()
    except BaseException:
        stage.clear()
        raise
    finally:
        if context.codecs.resends is not None:
            context.codecs.resends.clear()


class _Step:
    """The state of one step of one rank."""

    def __init__(
        self,
        context: StepContext,
        stage: Stage,
        optimizer: StageOptimizer,
        step: int,
        batch: Batch,
        recorder: Recorder,
        samples: Callable[[int], Key] | None,
        outer: OuterOptimizer | None,
    ) -> None:
        self._context, self._stage, self._optimizer, self._step = context, stage, optimizer, step
        self._batch, self._samples = batch, samples or (lambda _: ())
        self._recorder = recorder
        self._peers = Peers(context, step, self._recorder)
        self._check = StepCheck(context, self._peers, context.check_of(step))
        self._tensors: dict[tuple[str, int], Tensor] = {}
        """By (kind, micro-batch): received and not yet used, or computed and not yet sent."""
        plan = context.plan
        self._backwards_left = plan.micro_batches[context.replica]
        first = context.codecs.momentum_from()
        self._frozen_after = None if first is None or step < first else first
        """Where momentum is exchanged in this step: after how many steps the variance was frozen."""
        self._reduction, self._outer, self._outer_sum = None, outer, None
        self._outer_sums: dict[int, Tensor] = {}
        group, first_layer = plan.group(context.stage), plan.partition[context.stage][0]
        samples_of_loss = context.job.global_batch
        if plan.local_steps:
            assert outer is not None, "a plan of local steps is run with an outer optimizer"
            self._outer_sum = ShardedSum(self._peers, self._recorder, context.rank, group, outer.units(step))
            samples_of_loss = plan.micro_batches[context.replica] * plan.micro_batch
        elif plan.n_replicas > 1:
            self._reduction = GradientReduction(
                self._peers, self._recorder, context.rank, group, stage.owned, first_layer
            )
        self._boundary, self._dtype = (
            _boundary_shape(context, plan.micro_batch),
            boundary_dtype(context.job.precision),
        )
        self._kind: SpanKind = "forward"
        self._since_s = 0.0
        """When what is computed now, or went on behind a wait for another shard, began."""
        self._loss_scale = 1.0 / (samples_of_loss * context.job.sequence_length)
        self._reads_tokens = _reads_tokens(context, stage)
        self._loss_sum, self._tokens, self._grad_norm = 0.0, 0, 0.0
        self._own_square = 0.0
        self._bad_loss = ""
        self._received = {k: torch.zeros((), device=context.device) for k in ("activation", "gradient")}
        """By kind, the sum of all that was received: not finite if any of it is not."""

    def run(self) -> StepResult:
        with self._peers:
            actions = self._context.plan.actions(self._context.rank)
            self._expect(actions)
            for action in actions:
                self._do(action)
            self._peers.flush()
        recorder = self._recorder
        return StepResult(
            loss_sum=self._loss_sum,
            tokens=self._tokens,
            grad_norm=self._grad_norm,
            spans=tuple(recorder.spans),
            duration_s=recorder.now_s(),
            sent_bytes=recorder.sent_bytes,
            raw_bytes=recorder.raw_bytes,
            late_s=recorder.late_s,
            links=recorder.links,
        )

    def _do(self, action: Action) -> None:
        match action:
            case Recv(kind, mb, src):
                samples = self._samples(mb)
                x = self._peers.receive(kind, src, self._boundary, self._dtype, mb, samples=samples)
                self._check.came(kind, mb, src, x)
                self._received[kind] = self._received[kind] + x.sum(dtype=torch.float32)
                self._tensors[kind, mb] = x
            case Forward(mb):
                self._reached("forward")
                self._forward(mb)
            case Backward(mb):
                self._reached("backward")
                self._backward(mb)
            case Send(kind, mb, dst):
                x = self._tensors.pop((kind, mb))
                self._peers.send(kind, dst, x, mb, samples=self._samples(mb))
                self._check.sent(kind, mb, dst, x)
            case ReduceGradients():  # without replicas, in a plan of local steps, there is no reduction
                self._reached("reduction")
                self._reduce()
            case StartOuterStep():
                self._start_outer()
            case FinishOuterStep():
                assert self._outer_sum is not None
                self._outer_sums = self._outer_sum.finish()
            case OptimizerStep():
                self._optimize()

    def _expect(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Recv):
                kind, mb, src = action.kind, action.mb, action.src
                self._peers.expect(kind, src, self._boundary, self._dtype, mb, samples=self._samples(mb))
        if self._reduction is not None:
            self._reduction.expect()
        if self._outer_sum is not None:
            self._outer_sum.expect()

    def _start_outer(self) -> None:
        assert self._outer is not None
        assert self._outer_sum is not None
        plan = self._context.plan
        share = plan.micro_batches[self._context.replica] / sum(plan.micro_batches)
        for tag, change in self._outer.begin(self._step, share).items():
            self._outer_sum.start(tag, change)

    def _forward(self, mb: int) -> None:
        stage = self._stage
        inputs, targets, documents = self._given(mb)
        x = inputs if stage.is_first else self._tensors.pop(("activation", mb))
        assert x is not None
        shard = shard_of(self._context, self._peers, mb, partial(self._waits, mb))
        self._since_s = self._recorder.now_s()
        self._kind = "forward"
        y = stage.forward(mb, x, targets, shard, documents)
        if targets is not None:
            loss = y.item()
            self._computed("forward", self._since_s, mb)
            if not isfinite(loss) and not self._bad_loss:  # the vote will tell; it may be this rank's alone
                self._bad_loss = (
                    f"step {self._step}, rank {self._context.rank}, micro-batch {mb}: found the loss"
                    f" {loss}; required a finite one: resume with a lower lr or a lower clip_norm"
                )
            self._loss_sum += loss
            self._tokens += targets.numel()
        else:
            self._computed("forward", self._since_s, mb)
            self._tensors["activation", mb] = y

    def _backward(self, mb: int) -> None:
        stage = self._stage
        self._backwards_left -= 1
        is_last_backward = self._backwards_left == 0
        exchanges = self._reduction is not None or self._frozen_after is not None
        done = self._layer_done if exchanges and is_last_backward else None
        gradient = None if stage.is_last else self._tensors.pop(("gradient", mb))
        self._since_s = self._recorder.now_s()
        self._kind = "backward"
        x_gradient = stage.backward(mb, gradient, self._loss_scale, done)
        self._computed("backward", self._since_s, mb)
        if self._outer_sum is not None:
            self._outer_sum.add_what_is_there()
        if x_gradient is not None:
            self._tensors["gradient", mb] = x_gradient

    def _waits(self, mb: int, begins: bool) -> None:
        """The wait for another shard parts what is computed in two."""
        if begins:
            self._computed(self._kind, self._since_s, mb)
        else:
            self._since_s = self._recorder.now_s()

    def _layer_done(self, layer: int) -> None:
        """The layer has this replica's whole gradient: it, or the momentum it makes, goes to the peers."""
        if self._frozen_after is not None:
            self._optimizer.to_momentum(layer, self._share)
        if self._reduction is not None:
            self._reduction.start(layer)

    def _share(self, p: nn.Parameter) -> float:
        """Which part of the common momentum of `p` this rank puts in: that of its micro-batches; half of it
        where another stage puts in the other half."""
        micro_batches = self._context.plan.micro_batches
        share = micro_batches[self._context.replica] / sum(micro_batches)
        return share / 2 if p is self._stage.tied else share

    def _reduce(self) -> None:
        if self._reduction is not None:
            self._reduction.finish()
        elif self._stage.tied is not None:  # before the other end's part comes to it, as a reduction counts
            self._own_square = float(layer_squares(self._stage.owned, left_out=None).sum())
        if self._stage.tied is not None:
            exchange_tied(self._context, self._peers, self._recorder, self._stage.tied)

    def _optimize(self) -> None:
        context, stage = self._context, self._stage
        self._check.compute(stage, self._given, (self._boundary, self._dtype), self._loss_scale)
        self._peers.flush()  # a tensor that could not be encoded is known before a weight changes
        start_s = self._recorder.now_s()
        squares = layer_squares(stage.owned, left_out=None if stage.is_first else stage.tied)
        self._computed("optimizer", start_s)
        self._grad_norm = self._agree(tuple(squares.tolist()))
        if self._bad_loss:
            raise Diverged(self._bad_loss)
        if not isfinite(self._grad_norm):
            raise Diverged(
                f"step {self._step}, rank {context.rank}: found a gradient whose norm is no finite number;"
                " required one: resume with a lower lr, or in fp32"
            )
        start_s = self._recorder.now_s()
        clip(stage.owned, self._grad_norm, context.job.optimizer.clip_norm)
        lr = learning_rate(context.job.optimizer, self._step, context.job.steps)
        context.stepping(self._step, lr, self._frozen_after)
        if self._frozen_after is None:
            self._optimizer.step(lr)
        else:
            self._optimizer.step_by_momentum(lr, self._frozen_after)
        if self._outer is not None and self._outer_sum is not None:
            self._outer.apply(self._step, self._outer_sums)
        self._computed("optimizer", start_s)

    def _own(self, squares: tuple[float, ...]) -> float:
        """Squares of this rank's own gradients, alike whatever the number of replicas."""
        if self._reduction is not None:
            return self._reduction.own_square
        return sum(squares) if self._stage.tied is None else self._own_square

    def _agree(self, squares: tuple[float, ...]) -> float:
        """Vote, and wait until all have; the gradient's norm."""
        recorder = self._recorder
        start_s = recorder.now_s()
        vote = Vote(
            self._step,
            squares,
            self._loss_sum,
            self._tokens,
            start_s,
            recorder.sent_bytes,
            recorder.raw_bytes,
            self._own(squares),
            not bool(self._received["activation"].isfinite()),
            not bool(self._received["gradient"].isfinite()),
            self._check.error,
        )
        self._reached("vote")
        norm = self._context.agreement.commit(vote)
        self._reached("commit")
        recorder.add("wait", start_s)
        return norm

    def _reached(self, phase: Phase) -> None:
        context = self._context
        context.reached(phase, self._step, context.plan.version, context.rank)

    def _computed(self, kind: SpanKind, start_s: float, mb: int = -1) -> None:
        if self._context.device.type == "cuda":
            torch.cuda.synchronize(self._context.device)  # else the span were that of the launch
        self._recorder.add(kind, start_s, mb)

    def _given(self, mb: int) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """What the stage reads of micro-batch `mb`: inputs, targets in a last stage, documents' numbers."""
        context = self._context
        if not self._reads_tokens:
            return None, None, None
        inputs, targets = _split(context, self._batch(mb), context.plan.micro_batch)
        return inputs, targets if self._stage.is_last else None, _documents(context, inputs)


def _boundary_shape(context: StepContext, n: int) -> tuple[int, ...]:
    """Of what crosses between stages, for `n` samples."""
    start, stop = _positions(context)
    return (n, stop - start, context.job.shape.hidden)


def _positions(context: StepContext) -> tuple[int, int]:
    """[start, stop): those of every sequence that this rank computes."""
    plan = context.plan
    return plan.shard_bounds(context.job.sequence_length)[context.replica if plan.split == "sequence" else 0]


def _reads_tokens(context: StepContext, stage: Stage) -> bool:
    return stage.is_first or stage.is_last or context.separator is not None


def _documents(context: StepContext, inputs: Tensor | None) -> Tensor | None:
    """The number of each position's document, where these are kept apart."""
    if context.separator is None or inputs is None:
        return None
    return documents_of(inputs, context.separator)


def _split(context: StepContext, tokens: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets at this rank's positions, of `n` samples."""
    length = context.job.sequence_length
    if tokens.shape != (n, length + 1) or tokens.dtype != torch.int64:
        raise ValueError(
            f"found a batch of {tokens.dtype} {tuple(tokens.shape)}; required torch.int64 {(n, length + 1)}"
        )
    start, stop = _positions(context)
    tokens = tokens[:, start : stop + 1].to(context.device)
    return tokens[:, :-1], tokens[:, 1:]


def run_eval(
    context: StepContext,
    stage: Stage,
    step: int,
    n_samples: int,
    batch: Callable[[Sequence[int]], Tensor],
    clock: Callable[[], float],
) -> tuple[float, int]:
    """Forward only, over held-out samples 0 .. n_samples - 1: (cross entropy summed, tokens summed over).

    Micro-batch i goes to replica i mod n_replicas, or to all where they share every sequence; the last one
    may be smaller. (0.0, 0) but in a last stage. `batch(ids)` gives int64 (len(ids), sequence_length + 1),
    asked where `run_step` asks it. Sums of the replicas are to be added. `step` tells evaluations apart.
    """
    job, plan = context.job, context.plan
    peers = Peers(context, step, Recorder(context.rank, clock))
    ids = range(n_samples)
    micro_batches = [ids[i : i + plan.micro_batch] for i in range(0, n_samples, plan.micro_batch)]
    loss_sum, tokens = 0.0, 0
    for mb in range(context.replica % plan.batch_shares, len(micro_batches), plan.batch_shares):
        own = micro_batches[mb]
        inputs, targets = None, None
        if _reads_tokens(context, stage):
            inputs, targets = _split(context, batch(own), len(own))
        documents = _documents(context, inputs)
        if not stage.is_first:
            shape = _boundary_shape(context, len(own))
            inputs = peers.receive("eval", context.rank - 1, shape, boundary_dtype(job.precision), mb)
        assert inputs is not None
        shard = shard_of(context, peers, mb, lambda _: None, "eval")
        y = stage.evaluate(inputs, targets if stage.is_last else None, shard, documents)
        if targets is not None and stage.is_last:
            loss_sum += y.item()
            tokens += targets.numel()
        else:
            peers.send("eval", context.rank + 1, y, mb)
    return loss_sum, tokens

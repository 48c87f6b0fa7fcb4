"""The one engine that replays a plan against a clock: same actions as the worker's, times instead of tensors.

Deterministic and event-driven; knows neither where durations come from (`cost.py`) nor what a
link is made of (`network.py`, `flows.py`). The model:

- A rank does one action at a time. Recv waits (a `wait` span) until its tensor has arrived.
- A tensor with a codec is encoded before it leaves, beside the rank's compute, one after the other, and
  decoded where it arrives, one after the other of its kind from its sender. What travels as it is costs
  neither. In a gradient exchange each shard is encoded, sent and decoded before the next, and what a member
  sends to all in the second round is encoded once.
- Send costs the rank nothing. A link carries its transfers one after the other, first come, first
  served; the two directions of a pair do not disturb each other, nor do the links of one device to
  several others unless the network says what they share.
- A computation takes its profiled seconds at the device's speed of the moment (`speed.py`).
- Ranks that share a host's cores share them fairly: k computing at once each progress at
  min(1, cores / k).
- The sharded gradient exchange of a stage starts when the last of its replicas has done its last
  backward and takes two rounds; in each, a member sends its shards to the others one after the
  other, and the round ends with the slowest member: on links that share nothing
  2 max_d Σ_d' (latency + bytes / (D bandwidth)).
  That is DT-FM's sum, and exact where a member's shards share its way out. Workers hand over all
  shards at once, and a layer's when that layer is done: where every link has a rate of its own, this
  is pessimistic by what they overlap.
- Where replicas share sequences, forwards and backwards go in pieces (`shard_rows.py`).
- With local steps the exchange, of a piece of the weights' change, begins with the step; links carry it
  beside the rest, and the optimizer waits for it.
- First and last stage then swap the gradient of a tied embedding within each replica.
- The optimizer starts once all stages of the replica have told each other their gradient norms.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from scheduler.clock import Clock, Happening
from scheduler.cores import SharedCores
from scheduler.durations import Durations, EngineError, require_sizes
from scheduler.exchanges import all_to_all, sharded
from scheduler.flows import FlowNetwork, TopologyNetwork
from scheduler.network import FreeNetwork, Network
from scheduler.plan import Plan
from scheduler.schedule import (
    Actions,
    Backward,
    FinishOuterStep,
    Forward,
    Kind,
    OptimizerStep,
    Recv,
    ReduceGradients,
    Send,
    StartOuterStep,
)
from scheduler.shard_rows import RowReplay
from scheduler.speed import Speed
from scheduler.timeline import Span, SpanKind, Timeline

__all__ = [
    "NOMINAL",
    "NORM_BYTES",
    "Durations",
    "EngineError",
    "FlowNetwork",
    "FreeNetwork",
    "Network",
    "TopologyNetwork",
    "replay",
]

NORM_BYTES = 8
"""What a stage tells the others before the clip: one double."""

NOMINAL: Mapping[str, Speed] = {}
"""Every device computes as fast as it was profiled."""


def replay(
    plan: Plan, durations: Durations, network: Network, speeds: Mapping[str, Speed] = NOMINAL
) -> Timeline:
    """One step of `plan`, all ranks starting at 0. The same arguments give the same timeline.

    `speeds`: by device, for those that are not always as fast as profiled.
    Spans are sorted by start, then rank. Raises EngineError if sizes do not fit the plan, or if
    ranks wait for what is never sent (`schedule.check` says where).
    """
    require_sizes(plan, durations)
    return _Replay(plan, durations, network, speeds).run()


_Tensor = tuple[Kind, int, int, int]
"""kind, micro-batch, source rank, destination rank."""


@dataclass(slots=True)
class _Rank:
    actions: Actions
    next_action: int = 0
    since_s: float = 0.0
    """When the action under way, or the wait for it, began."""
    awaits: _Tensor | None = None


class _Replay:
    """The state of one replay."""

    def __init__(
        self, plan: Plan, durations: Durations, network: Network, speeds: Mapping[str, Speed]
    ) -> None:
        self._plan = plan
        self._durations = durations
        self._clock = Clock()
        self._links = network.open(self._clock.at)
        self._device = tuple(plan.device(r) for r in range(plan.n_ranks))
        self._ranks = [_Rank(plan.actions(r)) for r in range(plan.n_ranks)]
        self._spans: list[Span] = []
        self._arrived: set[_Tensor] = set()
        self._at_reduce: dict[int, list[int]] = defaultdict(list)
        self._at_outer: dict[int, list[int]] = defaultdict(list)
        """Ranks of a stage that have sent their piece."""
        self._outer_done: set[int] = set()
        self._at_tied: dict[int, list[int]] = defaultdict(list)
        self._at_optimizer: dict[int, list[int]] = defaultdict(list)
        self._speed = tuple(speeds.get(name) for name in self._device)
        self._encoder_free_s = [0.0] * plan.n_ranks
        self._decoder_free_s: dict[tuple[Kind, int, int], float] = defaultdict(float)
        self._row = None if durations.rows is None else RowReplay(plan, durations.rows, self)
        self._cores: dict[int, SharedCores] = {}
        for ranks, cores in durations.shared_cores:
            shared = SharedCores(cores, self._speed_of_host(ranks))
            self._cores.update((rank, shared) for rank in ranks)

    def _speed_of_host(self, ranks: tuple[int, ...]) -> Speed | None:
        if any(self._speed[r] != self._speed[ranks[0]] for r in ranks):
            names = ", ".join(self._device[r] for r in ranks)
            raise EngineError(f"{names} share their host's cores: found unequal speeds, required one for all")
        return self._speed[ranks[0]]

    def run(self) -> Timeline:
        for rank in range(self._plan.n_ranks):
            self._advance(rank)
        self._clock.run()
        stuck = [
            (r, s.actions[s.next_action]) for r, s in enumerate(self._ranks) if s.next_action < len(s.actions)
        ]
        if stuck:
            waits = ", ".join(f"rank {r} at {action}" for r, action in stuck)
            raise EngineError(f"the step never ends: {waits}; scheduler.schedule.check marks the cell")
        return Timeline(
            self._plan.n_ranks, tuple(sorted(self._spans, key=lambda s: (s.start_s, s.rank, s.end_s)))
        )

    # ---- one rank, action by action

    def _advance(self, rank: int) -> None:
        """Go on until an action takes time."""
        state = self._ranks[rank]
        while state.next_action < len(state.actions):
            action = state.actions[state.next_action]
            state.since_s = self._clock.now_s
            match action:
                case Send():
                    self._send(rank, action)
                    state.next_action += 1
                case Recv(kind, mb, src):
                    tensor = (kind, mb, src, rank)
                    if tensor not in self._arrived:
                        state.awaits = tensor
                        return
                    state.next_action += 1
                case Forward(mb) if self._row is not None:
                    self._row.forward(rank, mb, partial(self._finish_action, rank))
                    return
                case Backward(mb) if self._row is not None:
                    self._row.backward(rank, mb, partial(self._finish_action, rank))
                    return
                case Forward(mb):
                    self._compute(rank, "forward", self._durations.forward_s[rank], mb)
                    return
                case Backward(mb):
                    self._compute(rank, "backward", self._durations.backward_s[rank], mb)
                    return
                case ReduceGradients(over_replicas):
                    if over_replicas:
                        self._reach_reduce(rank)
                    else:
                        self._go_on_to_tied(rank)
                    return
                case StartOuterStep():
                    state.next_action += 1
                    self._start_outer(self._plan.stage_of(rank), rank)
                case FinishOuterStep():
                    if self._plan.stage_of(rank) not in self._outer_done:
                        return
                    state.next_action += 1
                case OptimizerStep():
                    self._reach_optimizer(rank)
                    return

    def _finish_action(self, rank: int) -> None:
        self._ranks[rank].next_action += 1
        self._advance(rank)

    def _span(
        self,
        rank: int,
        kind: SpanKind,
        start_s: float,
        end_s: float,
        mb: int = -1,
        peer: int = -1,
        n_bytes: int = 0,
    ) -> None:
        self._spans.append(Span(rank, kind, start_s, end_s, mb, peer, n_bytes))

    def _wait_span(self, rank: int, end_s: float, mb: int = -1, peer: int = -1) -> None:
        if end_s > self._ranks[rank].since_s:
            self._span(rank, "wait", self._ranks[rank].since_s, end_s, mb, peer)

    # ---- tensors between stages

    def _transfer(self, src: int, dst: int, n_bytes: float, arrived: Happening) -> None:
        self._links.send(self._device[src], self._device[dst], n_bytes, self._clock.now_s, arrived)

    def _send(self, rank: int, action: Send) -> None:
        d = self._durations
        n_bytes = (d.activation_bytes if action.kind == "activation" else d.gradient_bytes)[rank]
        tensor = (action.kind, action.mb, rank, action.dst)
        encode_s, _ = d.codec_s(action.kind, rank)
        if not encode_s:
            self._hand_over(tensor, n_bytes)
            return
        start_s = max(self._clock.now_s, self._encoder_free_s[rank])
        self._encoder_free_s[rank] = end_s = start_s + encode_s
        self._span(rank, "encode", start_s, end_s, action.mb, action.dst, n_bytes)
        self._clock.at(end_s, partial(self._hand_over, tensor, n_bytes))

    def _hand_over(self, tensor: _Tensor, n_bytes: int) -> None:
        _, _, src, dst = tensor
        self._transfer(src, dst, n_bytes, partial(self._arrive, tensor, self._clock.now_s, n_bytes))

    def _arrive(self, tensor: _Tensor, handed_s: float, n_bytes: int) -> None:
        kind, mb, src, dst = tensor
        self._span(src, "send", handed_s, self._clock.now_s, mb, dst, n_bytes)
        _, decode_s = self._durations.codec_s(kind, src)
        if not decode_s:
            self._be_there(tensor)
            return
        start_s = max(self._clock.now_s, self._decoder_free_s[kind, src, dst])
        self._decoder_free_s[kind, src, dst] = end_s = start_s + decode_s
        self._span(dst, "decode", start_s, end_s, mb, src)
        self._clock.at(end_s, partial(self._be_there, tensor))

    def _be_there(self, tensor: _Tensor) -> None:
        self._arrived.add(tensor)
        _, mb, src, dst = tensor
        if self._ranks[dst].awaits == tensor:
            self._ranks[dst].awaits = None
            self._wait_span(dst, self._clock.now_s, mb, src)
            self._finish_action(dst)

    # ---- compute, alone or on shared cores

    def _compute(self, rank: int, kind: SpanKind, seconds: float, mb: int = -1) -> None:
        self._ranks[rank].since_s = self._clock.now_s
        self.compute(rank, seconds, partial(self._computed, rank, kind, mb))

    def compute(self, rank: int, seconds: float, done: Happening) -> None:
        """`done` happens when the rank has computed what takes it so long alone."""
        cores, speed = self._cores.get(rank), self._speed[rank]
        if cores is None:
            end_s = self._clock.now_s + seconds if speed is None else speed.end_s(self._clock.now_s, seconds)
            self._clock.at(end_s, done)
        else:
            cores.start(self._clock.now_s, seconds, done)
            self._watch(cores)

    def _computed(self, rank: int, kind: SpanKind, mb: int) -> None:
        self._span(rank, kind, self._ranks[rank].since_s, self._clock.now_s, mb)
        self._finish_action(rank)

    def _watch(self, cores: SharedCores) -> None:
        """Look again when the next computation ends, if nothing starts or ends before."""
        end_s = cores.next_end_s()
        if end_s is not None:
            self._clock.at(end_s, partial(self._look, cores, cores.version))

    def _look(self, cores: SharedCores, version: int) -> None:
        if version == cores.version:
            done = cores.finish(self._clock.now_s)
            self._watch(cores)
            done()

    # ---- what shards of a row ask for

    def now_s(self) -> float:
        return self._clock.now_s

    def transfer(self, src: int, dst: int, n_bytes: float, arrived: Happening) -> None:
        self._transfer(src, dst, n_bytes, arrived)

    def worked(self, rank: int, kind: SpanKind, start_s: float, mb: int) -> None:
        self._span(rank, kind, start_s, self._clock.now_s, mb)

    def sent(self, rank: int, start_s: float, mb: int, peer: int, n_bytes: int) -> None:
        self._span(rank, "send", start_s, self._clock.now_s, mb, peer, n_bytes)

    def waited(self, rank: int, start_s: float, mb: int, peer: int) -> None:
        if self._clock.now_s > start_s:
            self._span(rank, "wait", start_s, self._clock.now_s, mb, peer)

    # ---- the end of the step

    def _reach_reduce(self, rank: int) -> None:
        stage = self._plan.stage_of(rank)
        here = self._at_reduce[stage]
        here.append(rank)
        if len(here) < self._plan.n_replicas:
            return
        group = self._plan.group(stage)
        for member in group:
            self._wait_span(member, self._clock.now_s, peer=rank)
        self._exchange(stage, partial(self._reduced, stage, self._clock.now_s))

    def _exchange(self, stage: int, done: Happening) -> None:
        """Both rounds among the replicas of a stage."""
        group = self._plan.group(stage)
        shard_bytes = self._durations.reduce_bytes[stage] / len(group)
        send = again = self._transfer
        if self._durations.reduce_codec_s:
            shard, others = 1 / len(group), max(1, len(group) - 1)
            send = partial(self._coded, "reduce", shard, shard)
            again = partial(self._coded, "reduce", shard / others, shard)
        sharded(group, shard_bytes, send, again, done)

    def _coded(
        self, kind: str, encoded: float, decoded: float, src: int, dst: int, n_bytes: float, done: Happening
    ) -> None:
        """A transfer with these parts of the ranks' `codec_s` before and behind it."""
        encode_s = encoded * self._durations.codec_s(kind, src)[0]
        decode_s = decoded * self._durations.codec_s(kind, dst)[1]

        def decode() -> None:
            self._clock.at(self._clock.now_s + decode_s, done)

        def hand_over() -> None:
            self._transfer(src, dst, n_bytes, decode)

        self._clock.at(self._clock.now_s + encode_s, hand_over)

    def _reduced(self, stage: int, start_s: float) -> None:
        now_s, n_bytes = self._clock.now_s, self._durations.reduce_bytes[stage]
        for rank in self._plan.group(stage):
            if now_s > start_s:
                self._span(rank, "reduce", start_s, now_s, n_bytes=n_bytes)
            self._ranks[rank].since_s = now_s
            self._go_on_to_tied(rank)

    def _go_on_to_tied(self, rank: int) -> None:
        last = self._plan.n_stages - 1
        if self._durations.tied_bytes and last > 0 and self._plan.stage_of(rank) in (0, last):
            self._reach_tied(rank)
        else:
            self._finish_action(rank)

    def _start_outer(self, stage: int, rank: int) -> None:
        here = self._at_outer[stage]
        here.append(rank)
        if len(here) == self._plan.n_replicas:
            self._exchange(stage, partial(self._finish_outer, stage))

    def _finish_outer(self, stage: int) -> None:
        self._outer_done.add(stage)
        for rank in self._plan.group(stage):
            state = self._ranks[rank]
            waits = state.next_action < len(state.actions) and isinstance(
                state.actions[state.next_action], FinishOuterStep
            )
            if waits:
                self._wait_span(rank, self._clock.now_s)
                self._finish_action(rank)

    def _reach_tied(self, rank: int) -> None:
        here = self._at_tied[self._plan.replica_of(rank)]
        here.append(rank)
        if len(here) < 2:
            return
        for own in here:
            self._wait_span(own, self._clock.now_s, peer=rank)
        swapped = partial(self._swapped, tuple(here), self._clock.now_s)
        coded = partial(self._coded, "tied", 1.0, 1.0)
        send = coded if self._durations.tied_codec_s else self._transfer
        all_to_all(here, self._durations.tied_bytes, send, swapped)

    def _swapped(self, pair: tuple[int, ...], start_s: float) -> None:
        for own, other in (pair, reversed(pair)):
            if self._clock.now_s > start_s:
                n_bytes = self._durations.tied_bytes
                self._span(own, "reduce", start_s, self._clock.now_s, peer=other, n_bytes=n_bytes)
            self._finish_action(own)

    def _reach_optimizer(self, rank: int) -> None:
        here = self._at_optimizer[self._plan.replica_of(rank)]
        here.append(rank)
        if len(here) == self._plan.n_stages:
            all_to_all(here, NORM_BYTES, self._transfer, partial(self._optimize, here, rank))

    def _optimize(self, ranks: list[int], last: int) -> None:
        for own in sorted(ranks):
            self._wait_span(own, self._clock.now_s, peer=last)
            self._compute(own, "optimizer", self._durations.optimizer_s[own])

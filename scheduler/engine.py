"""The one engine that replays a plan against a clock: same actions as the worker's, times instead of tensors.

Deterministic and event-driven; knows neither where durations come from (`cost.py`) nor what a
link is made of (`network.py`). The model:

- A rank does one action at a time. Recv waits (a `wait` span) until its tensor has arrived.
- Send costs the rank nothing. A link carries its transfers one after the other, first come, first
  served; the two directions of a pair, and the links of one device to several others, do not
  disturb each other.
- Ranks that share a host's cores share them fairly: k computing at once each progress at
  min(1, cores / k).
- The sharded gradient exchange of a stage starts when the last of its replicas has done its last
  backward and takes two rounds; in each, a member sends its shards to the others one after the
  other, and the round ends with the slowest member: 2 max_d Σ_d' (latency + bytes / (D bandwidth)).
  Workers start a layer's exchange already when that layer is done, so this is pessimistic by what
  they overlap.
- First and last stage then swap the gradient of a tied embedding within each replica.
- The optimizer starts once all stages of the replica have told each other their gradient norms.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from scheduler.cores import SharedCores
from scheduler.durations import Durations, EngineError, require_sizes
from scheduler.network import FreeNetwork, Network, TopologyNetwork
from scheduler.plan import Plan
from scheduler.schedule import (
    Actions,
    Backward,
    Forward,
    Kind,
    OptimizerStep,
    Recv,
    ReduceGradients,
    Send,
)
from scheduler.timeline import Span, SpanKind, Timeline

__all__ = ["NORM_BYTES", "Durations", "EngineError", "FreeNetwork", "Network", "TopologyNetwork", "replay"]

NORM_BYTES = 8
"""What a stage tells the others before the clip: one double."""


def replay(plan: Plan, durations: Durations, network: Network) -> Timeline:
    """One step of `plan`, all ranks starting at 0. The same arguments give the same timeline.

    Spans are sorted by start, then rank. Raises EngineError if sizes do not fit the plan, or if
    ranks wait for what is never sent (`schedule.check` says where).
    """
    require_sizes(plan, durations)
    return _Replay(plan, durations, network).run()


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
    """The state of one replay. Events are (time, order, what to do)."""

    def __init__(self, plan: Plan, durations: Durations, network: Network) -> None:
        self._plan = plan
        self._durations = durations
        self._network = network
        self._device = tuple(plan.device(r) for r in range(plan.n_ranks))
        self._ranks = [_Rank(plan.actions(r)) for r in range(plan.n_ranks)]
        self._now_s = 0.0
        self._order = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._spans: list[Span] = []
        self._arrived: set[_Tensor] = set()
        self._link_free_s: dict[tuple[int, int], float] = defaultdict(float)
        self._at_reduce: dict[int, list[int]] = defaultdict(list)
        self._at_tied: dict[int, list[int]] = defaultdict(list)
        self._at_optimizer: dict[int, list[int]] = defaultdict(list)
        self._cores: dict[int, SharedCores] = {}
        for ranks, cores in durations.shared_cores:
            shared = SharedCores(cores)
            self._cores.update((rank, shared) for rank in ranks)

    def run(self) -> Timeline:
        for rank in range(self._plan.n_ranks):
            self._advance(rank)
        while self._events:
            self._now_s, _, happen = heapq.heappop(self._events)
            happen()
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
            state.since_s = self._now_s
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
                case Forward(mb):
                    self._compute(rank, "forward", self._durations.forward_s[rank], mb)
                    return
                case Backward(mb):
                    self._compute(rank, "backward", self._durations.backward_s[rank], mb)
                    return
                case ReduceGradients():
                    self._reach_reduce(rank)
                    return
                case OptimizerStep():
                    self._reach_optimizer(rank)
                    return

    def _finish_action(self, rank: int) -> None:
        self._ranks[rank].next_action += 1
        self._advance(rank)

    def _at(self, time_s: float, happen: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._events, (time_s, self._order, happen))

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

    def _send(self, rank: int, action: Send) -> None:
        stage = self._plan.stage_of(rank)
        if action.kind == "activation":
            n_bytes = self._durations.activation_bytes[stage]
        else:
            n_bytes = self._durations.gradient_bytes[stage - 1]
        link = (rank, action.dst)
        start_s = max(self._now_s, self._link_free_s[link])
        left_s, arrived_s = self._network.transfer(
            self._device[rank], self._device[action.dst], n_bytes, start_s
        )
        self._link_free_s[link] = left_s
        self._span(rank, "send", self._now_s, arrived_s, action.mb, action.dst, n_bytes)
        self._at(arrived_s, partial(self._arrive, (action.kind, action.mb, rank, action.dst)))

    def _arrive(self, tensor: _Tensor) -> None:
        self._arrived.add(tensor)
        _, mb, src, dst = tensor
        if self._ranks[dst].awaits == tensor:
            self._ranks[dst].awaits = None
            self._wait_span(dst, self._now_s, mb, src)
            self._finish_action(dst)

    # ---- compute, alone or on shared cores

    def _compute(self, rank: int, kind: SpanKind, seconds: float, mb: int = -1) -> None:
        self._ranks[rank].since_s = self._now_s
        done = partial(self._computed, rank, kind, mb)
        cores = self._cores.get(rank)
        if cores is None:
            self._at(self._now_s + seconds, done)
        else:
            cores.start(self._now_s, seconds, done)
            self._watch(cores)

    def _computed(self, rank: int, kind: SpanKind, mb: int) -> None:
        self._span(rank, kind, self._ranks[rank].since_s, self._now_s, mb)
        self._finish_action(rank)

    def _watch(self, cores: SharedCores) -> None:
        """Look again when the next computation ends, if nothing starts or ends before."""
        end_s = cores.next_end_s()
        if end_s is not None:
            self._at(end_s, partial(self._look, cores, cores.version))

    def _look(self, cores: SharedCores, version: int) -> None:
        if version == cores.version:
            done = cores.finish(self._now_s)
            self._watch(cores)
            done()

    # ---- the end of the step

    def _reach_reduce(self, rank: int) -> None:
        stage = self._plan.stage_of(rank)
        here = self._at_reduce[stage]
        here.append(rank)
        if len(here) < self._plan.n_replicas:
            return
        end_s = self._exchange_end_s(stage)
        for member in self._plan.group(stage):
            self._wait_span(member, self._now_s, peer=rank)
            if end_s > self._now_s:
                self._span(member, "reduce", self._now_s, end_s, n_bytes=self._durations.reduce_bytes[stage])
        self._at(end_s, partial(self._reduced, stage))

    def _exchange_end_s(self, stage: int) -> float:
        """When the two rounds of the sharded exchange (reduce, then gather) are over, if they start now."""
        group = self._plan.group(stage)
        shard_bytes = self._durations.reduce_bytes[stage] / len(group)
        end_s = self._now_s
        for _round in range(2):
            start_s = end_s
            for member in group:
                sent_s = start_s
                for other in group:
                    if other != member:
                        src, dst = self._device[member], self._device[other]
                        _, sent_s = self._network.transfer(src, dst, shard_bytes, sent_s)
                end_s = max(end_s, sent_s)
        return end_s

    def _reduced(self, stage: int) -> None:
        last = self._plan.n_stages - 1
        for rank in self._plan.group(stage):
            self._ranks[rank].since_s = self._now_s
            if self._durations.tied_bytes and last > 0 and stage in (0, last):
                self._reach_tied(rank)
            else:
                self._finish_action(rank)

    def _reach_tied(self, rank: int) -> None:
        replica = self._plan.replica_of(rank)
        here = self._at_tied[replica]
        here.append(rank)
        if len(here) < 2:
            return
        n_bytes = self._durations.tied_bytes
        a, b = here
        _, there_s = self._network.transfer(self._device[a], self._device[b], n_bytes, self._now_s)
        _, back_s = self._network.transfer(self._device[b], self._device[a], n_bytes, self._now_s)
        end_s = max(there_s, back_s)
        for own, other in ((a, b), (b, a)):
            self._wait_span(own, self._now_s, peer=rank)
            if end_s > self._now_s:
                self._span(own, "reduce", self._now_s, end_s, peer=other, n_bytes=n_bytes)
            self._at(end_s, partial(self._finish_action, own))

    def _reach_optimizer(self, rank: int) -> None:
        replica = self._plan.replica_of(rank)
        here = self._at_optimizer[replica]
        here.append(rank)
        if len(here) < self._plan.n_stages:
            return
        start_s = max(
            (
                self._network.transfer(self._device[src], self._device[dst], NORM_BYTES, self._now_s)[1]
                for src in here
                for dst in here
                if src != dst
            ),
            default=self._now_s,
        )
        for own in here:
            self._wait_span(own, start_s, peer=rank)
        for own in sorted(here):
            self._at(start_s, partial(self._compute, own, "optimizer", self._durations.optimizer_s[own]))

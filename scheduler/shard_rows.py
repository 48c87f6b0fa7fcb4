"""Sequences divided among replicas, as the engine replays them: a forward in pieces, with keys between them.

A stage's replicas stand in a row, shard by shard. In front of each attention a shard hands its keys and
values to the next one and waits for those of the shards before it, each of which it hands on if the next
needs it too. In backward the gradients of keys and values come back along the row, added up: behind an
attention's piece a shard sends what it owes to the one before, and waits for what it is owed.
The order is the worker's (`worker/model/ring.py`); a test holds the bytes to those that workers send.

Knows ranks, pieces and bytes; time passes where it is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, Protocol

from scheduler.clock import Happening
from scheduler.plan import Plan
from scheduler.sequence import earlier_shards, passed_on


class Call(NamedTuple):
    """One attention of a stage, in one micro-batch."""

    block_bytes: tuple[int, ...]
    """[shard]: of its keys and values."""
    window: int = 0


@dataclass(frozen=True, slots=True)
class Rows:
    """What sharing sequences costs, of one micro-batch."""

    bounds: tuple[tuple[int, int], ...]
    """[start, stop) of every shard's positions."""
    calls: tuple[tuple[Call, ...], ...]
    """[stage]: its attentions in order."""
    forward_pieces_s: tuple[tuple[float, ...], ...]
    """[rank]: what comes before its stage's first attention, and from each on."""
    backward_pieces_s: tuple[tuple[float, ...], ...]
    """Likewise, without a forward that is done again."""
    again: bool
    """Whether backward does the forward again, and asks for the keys again."""

    def handed_on_bytes(self, stage: int, replica: int) -> int:
        """Keys that a shard sends to the next in one forward, which is what it is owed from there in
        backward."""
        return sum(
            call.block_bytes[j]
            for call in self.calls[stage]
            for j in passed_on(self.bounds, replica, call.window)
        )


class Engine(Protocol):
    """What the replay of a row asks of the engine."""

    def now_s(self) -> float: ...

    def compute(self, rank: int, seconds: float, done: Happening) -> None:
        """`done` happens when the rank has computed so long."""

    def transfer(self, src: int, dst: int, n_bytes: float, arrived: Happening) -> None: ...

    def worked(self, rank: int, kind: Literal["forward", "backward"], start_s: float, mb: int) -> None:
        """A span that ends now."""

    def sent(self, rank: int, start_s: float, mb: int, peer: int, n_bytes: int) -> None: ...

    def waited(self, rank: int, start_s: float, mb: int, peer: int) -> None: ...


_Block = tuple[str, int, int, int, int]
"""keys, again or owed; micro-batch; call; the shard whose keys they are; who receives them."""


class RowReplay:
    """Forwards and backwards of the ranks of a plan whose replicas share sequences."""

    def __init__(self, plan: Plan, rows: Rows, engine: Engine) -> None:
        self._plan, self._rows, self._engine = plan, rows, engine
        self._there: set[_Block] = set()
        self._awaited: dict[_Block, Happening] = {}

    def forward(self, rank: int, mb: int, done: Happening) -> None:
        self._forward(_Work(rank, mb, "forward", "keys", self._engine.now_s()), 0, done)

    def backward(self, rank: int, mb: int, done: Happening) -> None:
        work = _Work(rank, mb, "backward", "again", self._engine.now_s())
        last = len(self._calls(rank))
        if self._rows.again:
            self._forward(work, 0, partial(self._backward, work, last, done), closes=False)
        else:
            self._backward(work, last, done)

    # ----

    def _forward(self, work: _Work, piece: int, done: Happening, closes: bool = True) -> None:
        """Piece by piece; in front of all but the first, the exchange of an attention's keys."""
        calls = self._calls(work.rank)

        def computed() -> None:
            if piece < len(calls):
                self._exchange(work, piece, partial(self._forward, work, piece + 1, done, closes))
            else:
                if closes:
                    self._engine.worked(work.rank, work.kind, work.since_s, work.mb)
                done()

        self._compute(work.rank, self._rows.forward_pieces_s[work.rank][piece], computed)

    def _exchange(self, work: _Work, call: int, done: Happening) -> None:
        shard, window = self._plan.replica_of(work.rank), self._calls(work.rank)[call].window
        hands_on = passed_on(self._rows.bounds, shard, window)
        if shard in hands_on:
            self._send(work, work.keys, call, shard, 1)

        def take(blocks: Sequence[int]) -> None:
            if not blocks:
                done()
                return
            block, rest = blocks[0], blocks[1:]

            def taken() -> None:
                if block in hands_on:
                    self._send(work, work.keys, call, block, 1)
                take(rest)

            self._await(work, (work.keys, work.mb, call, block, work.rank), -1, taken)

        take(earlier_shards(self._rows.bounds, shard, window))

    def _backward(self, work: _Work, piece: int, done: Happening) -> None:
        """From the last piece to the first; behind each but that, the gradients of an attention's keys."""

        def computed() -> None:
            if piece:
                self._return(work, piece - 1, partial(self._backward, work, piece - 1, done))
            else:
                self._engine.worked(work.rank, work.kind, work.since_s, work.mb)
                done()

        self._compute(work.rank, self._rows.backward_pieces_s[work.rank][piece], computed)

    def _return(self, work: _Work, call: int, done: Happening) -> None:
        shard, window = self._plan.replica_of(work.rank), self._calls(work.rank)[call].window
        comes_back = passed_on(self._rows.bounds, shard, window)

        def owed(block: int, then: Happening) -> None:
            if block in comes_back:
                self._await(work, ("owed", work.mb, call, block, work.rank), 1, then)
            else:
                then()

        def give(blocks: Sequence[int]) -> None:
            if not blocks:
                owed(shard, done)
                return

            def given() -> None:
                self._send(work, "owed", call, blocks[0], -1)
                give(blocks[1:])

            owed(blocks[0], given)

        give(earlier_shards(self._rows.bounds, shard, window))

    def _compute(self, rank: int, seconds: float, done: Happening) -> None:
        if seconds > 0:
            self._engine.compute(rank, seconds, done)
        else:
            done()

    def _send(self, work: _Work, kind: str, call: int, block: int, way: int) -> None:
        """To the shard behind (`way` 1) or before (-1)."""
        dst, handed_s = work.rank + way * self._plan.n_stages, self._engine.now_s()
        n_bytes = self._calls(work.rank)[call].block_bytes[block]

        def arrived() -> None:
            self._engine.sent(work.rank, handed_s, work.mb, dst, n_bytes)
            self._arrive((kind, work.mb, call, block, dst))

        self._engine.transfer(work.rank, dst, n_bytes, arrived)

    def _arrive(self, block: _Block) -> None:
        self._there.add(block)
        if block in self._awaited:
            self._awaited.pop(block)()

    def _await(self, work: _Work, block: _Block, way: int, then: Happening) -> None:
        """Go on when the block is there; the wait parts what is computed in two."""
        if block in self._there:
            then()
            return
        start_s = self._engine.now_s()
        if start_s > work.since_s:
            self._engine.worked(work.rank, work.kind, work.since_s, work.mb)

        def go_on() -> None:
            self._engine.waited(work.rank, start_s, work.mb, work.rank + way * self._plan.n_stages)
            work.since_s = self._engine.now_s()
            then()

        self._awaited[block] = go_on

    def _calls(self, rank: int) -> tuple[Call, ...]:
        return self._rows.calls[self._plan.stage_of(rank)]


@dataclass(slots=True)
class _Work:
    """A forward or backward under way. `since_s`: when the rank began to compute what it has not told yet."""

    rank: int
    mb: int
    kind: Literal["forward", "backward"]
    keys: str
    since_s: float


def pieces(seconds: Sequence[float], n_calls: Sequence[int]) -> tuple[float, ...]:
    """What a stage's layers take, parted in front of each attention: [layer] seconds and attentions; a layer
    with several is parted evenly."""
    found = [0.0]
    for s, n in zip(seconds, n_calls, strict=True):
        if n == 0:
            found[-1] += s
        else:
            found += [s / n] * n
    return tuple(found)

"""Sums over the ranks of a group, by sharded exchange: what each has of a unit, and what all read in the end.

A unit, a flat tensor of known size, is cut in D shards for D ranks; shard j goes to rank j, which adds the D
versions in the group's order and sends the sum to all. Each rank so sends and receives 2 (D - 1) / D of the
unit's bytes, and because there is one sum of each value, all hold the same bits. Knows nothing of what is
summed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from scheduler.sequence import shard_bounds
from worker.peers import Peers
from worker.recorder import Recorder


class Unit(NamedTuple):
    """What is summed as one: so many values."""

    n: int
    dtype: torch.dtype


class ShardedSum:
    """One step's exchange between the ranks of `group`. `units`, by the tag of their frames, in the order in
    which they are started."""

    def __init__(
        self, peers: Peers, recorder: Recorder, rank: int, group: Sequence[int], units: Mapping[int, Unit]
    ) -> None:
        self._peers, self._recorder, self._group, self._rank = peers, recorder, tuple(group), rank
        self._me = self._group.index(rank)
        self._units = units
        self._bounds = {tag: shard_bounds(unit.n, len(self._group)) for tag, unit in units.items()}
        self._mine: dict[int, Tensor] = {}
        """This rank's version of the shard that it owns, until it is added."""
        self._reduced: dict[int, Callable[[], Tensor]] = {}
        """Gives the sum of that shard, as all ranks read it."""

    def expect(self) -> None:
        """Announce what the others will send."""
        for tag, (n, dtype) in self._units.items():
            if not n:
                continue
            own = self._bounds[tag][self._me]
            for src, (start, stop) in zip(self._group, self._bounds[tag], strict=True):
                if src != self._rank and own[1] > own[0]:
                    self._peers.expect("shard", src, (own[1] - own[0],), dtype, tag=tag)
                if src != self._rank and stop > start:
                    self._peers.expect("reduced", src, (stop - start,), dtype, tag=tag)

    def start(self, tag: int, flat: Tensor) -> None:
        """Send the shards of `flat` that others own; it must not be written to any more. Never waits."""
        for dst, (start, stop) in zip(self._group, self._bounds[tag], strict=True):
            if dst == self._rank:
                self._mine[tag] = flat[start:stop]
            elif start < stop:
                self._peers.send("shard", dst, flat[start:stop], tag=tag, quiet=True)
        self.add_what_is_there()

    def finish(self) -> dict[int, Tensor]:
        """Wait for all sums, by tag. Raises what `Peers.receive` raises.

        Until the shards of the unit that came first are there, nobody is known to have come, and the
        time is a `wait`; from then on it is `reduce`.
        """
        for tag in list(self._mine)[:1]:
            self._add(tag, quiet=False)
        start_s = self._recorder.now_s()
        for tag in list(self._mine):
            self._add(tag)
        sums = {tag: self._gather(tag) for tag in self._reduced}
        n_bytes = sum(x.numel() * x.element_size() for x in sums.values())
        self._recorder.add("reduce", start_s, n_bytes=n_bytes)
        return sums

    def add_what_is_there(self) -> None:
        """Unit by unit in the order of their start, so that every rank sends its sums in that order."""
        for tag in list(self._mine):
            others = [src for src in self._group if src != self._rank]
            empty = not self._mine[tag].numel()
            if not empty and not all(self._peers.ready("shard", src, tag=tag) for src in others):
                return
            self._add(tag)

    def _add(self, tag: int, quiet: bool = True) -> None:
        """Sum the owned shard, in the group's order, and send it to all."""
        mine = self._mine.pop(tag)
        self._reduced[tag] = lambda: mine
        if mine.numel():
            shape = (mine.numel(),)
            versions = [
                mine
                if src == self._rank
                else self._peers.receive("shard", src, shape, mine.dtype, tag=tag, quiet=quiet)
                for src in self._group
            ]
            total = versions[0].clone()
            for version in versions[1:]:
                total += version
            # A codec changes the sum: what the others will read is what this rank goes on with too.
            others = [r for r in self._group if r != self._rank]
            self._reduced[tag] = self._peers.broadcast("reduced", others, total, tag)

    def _gather(self, tag: int) -> Tensor:
        own = self._reduced[tag]()
        flat = own.new_empty(self._units[tag].n)
        for src, (start, stop) in zip(self._group, self._bounds[tag], strict=True):
            if src == self._rank:
                flat[start:stop] = own
            elif start < stop:
                shape = (stop - start,)
                flat[start:stop] = self._peers.receive("reduced", src, shape, own.dtype, tag=tag, quiet=True)
        return flat

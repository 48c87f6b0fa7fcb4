"""Copies that neighbours keep of each stage during a simulated run: who has which, as they were after a step.

They travel beside the steps, over the links of their moment, and count once every keeper has its own, as the
coordinator has it (`scheduler/neighbours.py` says who keeps whose). That they slow the steps' own transfers
down is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from scheduler.layer_sources import Holding, holdings_of
from scheduler.neighbours import Keeper, arrange
from scheduler.plan import Plan
from scheduler.profile import ModelProfile
from scheduler.topology import Topology

Send = tuple[str, str, int]
"""(from, to, bytes)."""


@dataclass(slots=True)
class Copies:
    """`every`: steps between copies; 0: there are none."""

    every: int
    there: Mapping[str, Holding] = field(default_factory=dict)
    """The last that all keepers had, with the holders' own: all of one step."""
    _keepers: tuple[Keeper, ...] = ()
    _coming: Mapping[str, Holding] = field(default_factory=dict)
    _arrive_s: float = 0.0

    def planned(self, plan: Plan, model: ModelProfile, topology: Topology) -> None:
        """Another plan runs: its stages are kept from now on, what was under way is not waited for."""
        self._coming = {}
        if self.every and not plan.local_steps:
            self._keepers = arrange(plan, model, topology).keepers

    def begin(
        self, plan: Plan, done: int, now_s: float, takes_s: Callable[[Sequence[Send]], float]
    ) -> tuple[Send, ...]:
        """What is sent from now on, after `done` steps, if it is time for copies. `takes_s`: of sends."""
        self.arrived(now_s)
        last = max((h.step for h in self.there.values()), default=0)
        if not self._keepers or self._coming or done < last + self.every:
            return ()
        sends = tuple((k.holder, k.keeper, k.n_bytes) for k in self._keepers)
        own = holdings_of(plan, done, plan.devices)
        coming = dict(own)
        for k in self._keepers:
            coming[k.keeper] = replace(
                coming[k.keeper], layers=coming[k.keeper].layers | own[k.holder].layers
            )
        self._coming, self._arrive_s = coming, now_s + takes_s(sends)
        return sends

    def arrived(self, now_s: float) -> None:
        """What is under way counts if it is there by now."""
        if self._coming and self._arrive_s <= now_s:
            self.there, self._coming = self._coming, {}

    def only_of(self, kept: Collection[str]) -> Mapping[str, Holding]:
        """Others than these have theirs no more."""
        self.there = {name: h for name, h in self.there.items() if name in kept}
        return self.there

"""When a run that goes well looks for a better plan: somebody came, it is time, the last look spoke for one.

What a look finds and whether it is worth moving to is not decided here (`scheduler/replan.py` does).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf


@dataclass(slots=True)
class Looking:
    """`every`: steps between looks at links that change; 0: only when somebody comes. Whoever came is looked
    at no sooner than `every_s` after the last look, as by the coordinator (`start --look-every`)."""

    every: int
    every_s: float
    known: frozenset[str] = frozenset()
    """Who was there when a plan was last made or looked for; who is not among them has come since."""
    looked_s: float = -inf
    streak: int = 0
    """Looks in a row that spoke for moving."""

    def due(self, here: Sequence[str], done: int, now_s: float) -> bool:
        """Whether to look now, after `done` steps, with those who are `here`."""
        self.known &= frozenset(here)
        if self.every and done % self.every == 0:
            return True
        came = bool(set(here) - self.known)
        return now_s - self.looked_s >= self.every_s and (came or (self.streak > 0 and not self.every))

    def looked(self, here: Sequence[str], now_s: float, streak: int) -> None:
        """A look was done, the `streak`-th in a row that spoke for moving; 0: it did not."""
        self.known, self.looked_s, self.streak = frozenset(here), now_s, streak

    def planned(self, here: Sequence[str]) -> None:
        """Another plan was taken, made with those who are `here`."""
        self.known, self.streak = frozenset(here), 0

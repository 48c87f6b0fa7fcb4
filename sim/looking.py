"""When a run that goes well looks for a better plan: somebody came, it is time, the last look spoke for one.

What a look finds and whether it is worth moving to is not decided here (`scheduler/replan.py` does).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf


@dataclass(slots=True)
class Looking:
    """`every`: steps between looks at links that change; 0: only when somebody comes. What those who came are
    good for is looked at, and looked at again, at most every `every_s`, as by the coordinator."""

    every: int
    every_s: float
    known: frozenset[str] = frozenset()
    """Who was there when a plan was last made or looked for; who is not among them has come since."""
    looked_s: float = -inf
    streak: int = 0
    """Looks in a row that spoke for moving."""
    came: bool = False
    """Whether they began because somebody came."""

    def due(self, here: Sequence[str], done: int, now_s: float) -> bool:
        """Whether to look now, after `done` steps, with those who are `here`."""
        self.known &= frozenset(here)
        self.came = self.came or bool(set(here) - self.known)
        if self.every and done % self.every == 0:
            return True
        return self.came and now_s - self.looked_s >= self.every_s

    def looked(self, here: Sequence[str], now_s: float, streak: int) -> None:
        """A look was done, the `streak`-th in a row that spoke for moving; 0: it did not."""
        self.known, self.looked_s, self.streak = frozenset(here), now_s, streak
        self.came = self.came and streak > 0

    def planned(self, here: Sequence[str]) -> None:
        """Another plan was taken, made with those who are `here`."""
        self.known, self.streak, self.came = frozenset(here), 0, False

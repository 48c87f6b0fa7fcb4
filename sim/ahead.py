"""In a simulated run: layers that travel while the steps of the running plan go on, until the plan they are
for is taken. How they travel, and whether, is the core's to say (`scheduler/following.py`), as in a real run.

What they take of the links is at most the share that is theirs, and is not taken from the steps here: it goes
mostly over links to who has no part in them yet. What it costs to send it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from scheduler.following import Following
from scheduler.layer_sources import Holding, with_followed
from scheduler.plan import Plan
from scheduler.profile import ModelProfile


@dataclass(frozen=True, slots=True)
class Ahead:
    """`at_step`: after so many steps all have caught up."""

    plan: Plan
    reason: str
    following: Following
    at_step: int

    def sent(self, model: ModelProfile, first: bool) -> Iterator[tuple[str, str, int]]:
        """(from, to, bytes) of what goes beside a step: gradients; with the `first`, the layers too."""
        for f in self.following.feeds:
            yield f.donor, f.follower, f.gradient_bytes(model) + first * f.layer_bytes(model)

    def able(self, here: Sequence[str]) -> bool:
        """Whether all are there who are to have a part in the plan."""
        return {*self.plan.devices, *self.following.participants} <= set(here)

    def holdings(self, own: Mapping[str, Holding], step: int) -> dict[str, Holding]:
        """`own`, and what was followed."""
        followed: dict[str, set[int]] = {name: set() for name in self.following.followers}
        for f in self.following.feeds:
            followed[f.follower] |= set(f.layers)
        return with_followed(own, followed, step)

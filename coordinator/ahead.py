"""What the coordinator knows of layers that travel while steps go on. Plain values; decides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from scheduler.following import Following
from scheduler.plan import Plan

Digests = Mapping[int, bytes]
"""Layer -> SHA-256 of its weights and optimizer state."""


@dataclass(frozen=True, slots=True)
class Ahead:
    """Layers of a plan to come. `at`: steps that all of a follower's have seen; no entry: they are not all
    there."""

    version: int
    plan: Plan
    """To be taken once they are there."""
    why: str
    """It is to be taken."""
    following: Following
    began: int
    """The step that was next."""
    since_s: float
    """When it began, or when the run stood still for the followers' last steps."""
    at: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    meeting: int = 0
    """No step is granted beyond: here donors and followers are compared; 0: not yet."""
    met: Mapping[str, Digests] = field(default_factory=lambda: MappingProxyType({}))
    """What they said they have there."""

    def expects(self, name: str) -> frozenset[int]:
        """The layers that it gives or follows."""
        feeds = self.following.feeds
        return frozenset(x for f in feeds if name in (f.donor, f.follower) for x in f.layers)

    @property
    def words(self) -> str:
        """For whoever asks how far it is."""
        steps = [
            f"{n} at step {self.at[n]}" if n in self.at else f"{n} begins" for n in self.following.followers
        ]
        met = f", to be compared at step {self.meeting}" if self.meeting else ""
        return f"layers travel beside the steps since step {self.began}: {', '.join(steps)}{met}"

    @property
    def same(self) -> Mapping[str, frozenset[int]]:
        """Follower -> those of its layers that are bit for bit their donors', where they met."""
        found: dict[str, set[int]] = {n: set() for n in self.following.followers}
        for f in self.following.feeds:
            given, has = self.met.get(f.donor, {}), self.met.get(f.follower, {})
            found[f.follower] |= {x for x in f.layers if x in given and given[x] == has.get(x)}
        return {name: frozenset(layers) for name, layers in found.items()}

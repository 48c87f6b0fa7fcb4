"""How much one kind of traffic used one link in a step, as one of its ends saw it. Only carried here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LinkUse:
    """`rank`'s end of the link to `peer`; peer -1: several, for whom the sender encoded once.

    The sender counts bytes, `encode_s` and the error, the receiver `decode_s` and resends.
    """

    rank: int
    peer: int
    kind: str
    """Of frame: activation, gradient, shard, reduced, tied, norm, …"""
    codec: str
    sent_bytes: int
    raw_bytes: int
    """What was sent, before the codec."""
    encode_s: float
    decode_s: float
    relative_error: float
    """Root of the squares of what the codec changed over the values'; 0: nothing, or not looked at."""
    resends: int
    """Tensors that had to come again whole, because what the codec remembered did not fit."""

    @property
    def ratio(self) -> float:
        """How many times less than without the codec was sent; 0 where nothing was."""
        return self.raw_bytes / self.sent_bytes if self.sent_bytes else 0.0

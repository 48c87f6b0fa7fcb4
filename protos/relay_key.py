"""The key that a run's members share with its relay: made from the run's token, which never travels there."""

from __future__ import annotations

import hashlib
import hmac


def relay_key(token: str) -> bytes:
    """32 bytes; whoever has them may use the relay, and can learn nothing of the token."""
    return hmac.digest(token.encode(), b"isthmus relay", hashlib.sha256)

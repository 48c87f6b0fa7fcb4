"""The version of the control protocol. Worker and coordinator must agree on it exactly.

Raised by one whenever a message changes its meaning; adding a field that both sides may
ignore does not.
"""

from __future__ import annotations

PROTOCOL_VERSION = 4

SESSION_METADATA = "isthmus-session"
"""Key of the metadata that carries the session id of JoinReply, on Session, PutLayer and GetLayer."""

MAX_MESSAGE_BYTES = 16 << 20
"""Cap of one control message in either direction."""

"""Dataclass <-> message: the only place that knows both.

Reads only what it was sent: sizes are capped and values checked before anything is built, and
a message that cannot be becomes a ConvertError that says what was found and what is required.
Knows nothing of streams, sessions or who sends what.

checked.py    caps and checks, ConvertError        members.py   devices, peers, spot checks
plans.py      the plan                             spans.py     spans and what links carried
profiles.py   layers and devices, as measured      files.py     files of a checkpoint
"""

from .checked import MAX_LAYERS, MAX_RANKS, ConvertError
from .files import file_from_message, file_to_message
from .members import (
    PeerInfo,
    device_from_message,
    device_to_message,
    is_curve_key,
    peer_to_message,
    spot_check_from_message,
    spot_check_to_message,
)
from .plans import plan_from_message, plan_to_message
from .profiles import profile_from_message, profiled_to_message
from .spans import (
    link_use_to_message,
    links_from_messages,
    span_to_message,
    spans_from_messages,
    spans_to_messages,
)

__all__ = [
    "MAX_LAYERS",
    "MAX_RANKS",
    "ConvertError",
    "PeerInfo",
    "device_from_message",
    "device_to_message",
    "file_from_message",
    "file_to_message",
    "is_curve_key",
    "link_use_to_message",
    "links_from_messages",
    "peer_to_message",
    "plan_from_message",
    "plan_to_message",
    "profile_from_message",
    "profiled_to_message",
    "span_to_message",
    "spans_from_messages",
    "spans_to_messages",
    "spot_check_from_message",
    "spot_check_to_message",
]

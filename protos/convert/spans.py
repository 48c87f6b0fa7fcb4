"""What a rank did in a step and when, and what its links carried."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import cast, get_args

from protos import orchestrator_pb2 as pb
from scheduler.link_use import LinkUse
from scheduler.timeline import Span, SpanKind, Timeline

from .checked import (
    MAX_LINKS,
    MAX_NAME,
    MAX_SPANS,
    ConvertError,
    at_most,
    finite,
)

_SPAN_KINDS = frozenset(get_args(SpanKind))


def span_to_message(span: Span) -> pb.SpanMsg:
    """The rank does not travel: it is the sender's."""
    return pb.SpanMsg(
        kind=span.kind,
        start_s=span.start_s,
        end_s=span.end_s,
        mb=span.mb,
        peer=span.peer,
        n_bytes=span.n_bytes,
    )


def span_from_message(m: pb.SpanMsg, rank: int) -> Span:
    """Raises ConvertError for a kind that is not known or a span that ends before it starts."""
    if m.kind not in _SPAN_KINDS:
        raise ConvertError(
            f"span.kind: found {m.kind[:40]!r}, required one of {', '.join(sorted(_SPAN_KINDS))}"
        )
    if not (math.isfinite(m.start_s) and math.isfinite(m.end_s) and m.start_s <= m.end_s):
        raise ConvertError(
            f"span {m.kind}: found {m.start_s} .. {m.end_s}, required a start no later than its end"
        )
    return Span(rank, cast(SpanKind, m.kind), m.start_s, m.end_s, m.mb, m.peer, m.n_bytes)


def spans_to_messages(timeline: Timeline, rank: int) -> list[pb.SpanMsg]:
    """The messages of one rank's spans."""
    return [span_to_message(s) for s in timeline.spans if s.rank == rank]


def spans_from_messages(messages: Iterable[pb.SpanMsg], rank: int) -> tuple[Span, ...]:
    """Raises ConvertError, also for more than MAX_SPANS."""
    found: list[Span] = []
    for m in messages:
        at_most("spans", len(found) + 1, MAX_SPANS)
        found.append(span_from_message(m, rank))
    return tuple(found)


def link_use_to_message(use: LinkUse) -> pb.LinkUse:
    """The rank does not travel: it is the sender's."""
    return pb.LinkUse(
        peer=use.peer,
        kind=use.kind,
        codec=use.codec,
        sent_bytes=use.sent_bytes,
        raw_bytes=use.raw_bytes,
        encode_s=use.encode_s,
        decode_s=use.decode_s,
        relative_error=use.relative_error,
        resends=use.resends,
    )


def link_use_from_message(m: pb.LinkUse, rank: int) -> LinkUse:
    """Raises ConvertError for a number that is not finite."""
    return LinkUse(
        rank,
        m.peer,
        m.kind[:MAX_NAME],
        m.codec[:MAX_NAME],
        m.sent_bytes,
        m.raw_bytes,
        finite("link.encode_s", m.encode_s),
        finite("link.decode_s", m.decode_s),
        finite("link.relative_error", m.relative_error),
        m.resends,
    )


def links_from_messages(messages: Iterable[pb.LinkUse], rank: int) -> tuple[LinkUse, ...]:
    """Raises ConvertError, also for more than MAX_LINKS."""
    found: list[LinkUse] = []
    for m in messages:
        at_most("links", len(found) + 1, MAX_LINKS)
        found.append(link_use_from_message(m, rank))
    return tuple(found)

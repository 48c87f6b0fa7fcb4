"""Where the time goes adds up, and tells waiting for bytes from waiting for work."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.shares import time_shares
from scheduler.timeline import Span, SpanKind, Timeline


def test_a_wait_is_exposed_from_when_what_it_waits_for_was_sent_and_bubble_before() -> None:
    timeline = Timeline(
        2,
        (
            Span(0, "forward", 0.0, 2.0, mb=0),
            Span(0, "send", 2.0, 3.0, mb=0, peer=1),
            Span(0, "send", 1.0, 3.5, mb=1, peer=1),  # nobody waits for that one
            Span(1, "wait", 0.0, 3.0, mb=0, peer=0),
            Span(1, "forward", 3.0, 5.0, mb=0),
            Span(1, "reduce", 5.0, 6.0),
        ),
    )
    shares = time_shares(timeline)
    assert shares.compute_s == 2.0
    assert shares.exposed_s == 0.5  # rank 1's last second of waiting, over two ranks
    assert shares.reduce_s == 0.5
    assert shares.bubble_s == 3.0  # rank 1 waits 2 s for work, rank 0 idles 4 s
    assert sum(v for _, v in shares.parts()) == timeline.duration_s


def test_free_links_expose_nothing() -> None:
    timeline = Timeline(2, (Span(0, "forward", 0, 1), Span(1, "wait", 0, 1), Span(1, "forward", 1, 2)))
    assert time_shares(timeline).exposed_s == 0
    assert time_shares(timeline).bubble_s == 1


def test_an_empty_step_takes_no_time() -> None:
    assert [v for _, v in time_shares(Timeline(0, ())).parts()] == [0, 0, 0, 0]


kinds: list[SpanKind] = ["forward", "backward", "wait", "reduce"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from(kinds), st.integers(0, 9), st.integers(0, 9)), max_size=8),
        min_size=1,
        max_size=4,
    ),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40), st.integers(0, 20)), max_size=8),
)
def test_the_parts_add_up_to_the_step(
    rows: list[list[tuple[SpanKind, int, int]]], sends: list[tuple[int, int, int]]
) -> None:
    spans: list[Span] = []
    for rank, row in enumerate(rows):
        now = 0
        for kind, gap, length in row:
            spans.append(Span(rank, kind, now + gap, now + gap + length, peer=0 if kind == "wait" else -1))
            now += gap + length
    spans += [Span(0, "send", at, at + length, peer=peer) for peer, at, length in sends]
    timeline = Timeline(len(rows), tuple(spans))
    shares = time_shares(timeline)
    assert sum(v for _, v in shares.parts()) == pytest.approx(timeline.duration_s)
    assert min(v for _, v in shares.parts()) >= -1e-9
    waited = sum(s.duration_s for s in spans if s.kind == "wait") / len(rows)
    assert shares.exposed_s <= waited + 1e-9

"""Timelines: what is read off them, and how two are subtracted."""

from __future__ import annotations

import json

import pytest

from scheduler.timeline import (
    Span,
    SpanKind,
    Timeline,
    bubble_fraction,
    chrome_trace,
    critical_path,
    difference,
    use_by_rank,
)

# Two stages, one micro-batch, one second of everything; rank 0 waits while rank 1 works.
PREDICTED = Timeline(
    2,
    (
        Span(0, "forward", 0, 1, mb=0),
        Span(0, "send", 1, 2, mb=0, peer=1, n_bytes=100),
        Span(1, "wait", 0, 2, mb=0, peer=0),
        Span(1, "forward", 2, 3, mb=0),
        Span(1, "backward", 3, 4, mb=0),
        Span(1, "send", 4, 5, mb=0, peer=0, n_bytes=100),
        Span(0, "wait", 1, 5, mb=0, peer=1),
        Span(0, "backward", 5, 6, mb=0),
        Span(1, "wait", 4, 6.5, peer=0),
        Span(0, "wait", 6, 6.5, peer=0),
        Span(0, "optimizer", 6.5, 7),
        Span(1, "optimizer", 6.5, 8),
    ),
)


def test_use_adds_up_to_the_step() -> None:
    first, second = use_by_rank(PREDICTED)
    assert (first.busy_s, first.wait_s, first.reduce_s, first.idle_s) == (2.5, 4.5, 0, 1)
    assert (second.busy_s, second.wait_s, second.reduce_s, second.idle_s) == (3.5, 4.5, 0, 0)
    assert bubble_fraction(PREDICTED) == pytest.approx(1 - 6 / 16)


def test_an_empty_timeline_has_no_bubble_and_no_path() -> None:
    empty = Timeline(3, ())
    assert empty.duration_s == 0
    assert bubble_fraction(empty) == 0
    assert critical_path(empty) == ()


def test_the_critical_path_follows_sends_and_syncs() -> None:
    path: list[tuple[SpanKind, int]] = [(s.kind, s.rank) for s in critical_path(PREDICTED)]
    assert path == [
        ("forward", 0),
        ("send", 0),
        ("forward", 1),
        ("backward", 1),
        ("send", 1),
        ("backward", 0),
        ("optimizer", 1),
    ]


def test_a_wait_without_a_recorded_cause_stays_in_the_path() -> None:
    t = Timeline(2, (Span(1, "wait", 0, 2, mb=0, peer=0), Span(1, "forward", 2, 3, mb=0)))
    assert [s.kind for s in critical_path(t)] == ["wait", "forward"]


def test_the_path_leads_through_codecs_that_run_beside_compute() -> None:
    spans = (
        Span(0, "forward", 0, 2, mb=0),
        Span(0, "forward", 2, 4, mb=1),
        Span(0, "encode", 2, 3, mb=0, peer=1),
        Span(0, "send", 3, 5, mb=0, peer=1),
        Span(1, "wait", 0, 6, mb=0, peer=0),
        Span(1, "decode", 5, 6, mb=0, peer=0),
        Span(1, "forward", 6, 9, mb=0),
        Span(1, "decode", 7, 8, mb=1, peer=0),
        Span(1, "forward", 9, 10, mb=1),
    )
    path = [(s.kind, s.mb) for s in critical_path(Timeline(2, spans))]
    assert path == [("forward", 0), ("encode", 0), ("send", 0), ("decode", 0), ("forward", 0), ("forward", 1)]
    use = use_by_rank(Timeline(2, spans))[1]
    assert (use.busy_s, use.wait_s, use.reduce_s, use.idle_s) == (4, 6, 0, 0)


def test_difference_matches_span_by_span() -> None:
    later = {"send": 0.5, "backward": 0.25}
    spans = [
        Span(s.rank, s.kind, s.start_s, s.end_s + later.get(s.kind, 0), s.mb, s.peer, s.n_bytes)
        for s in PREDICTED.spans
        if not (s.kind == "wait" and s.rank == 1)
    ]
    measured = Timeline(2, (*spans, Span(0, "encode", 1, 1.5, mb=0)))
    d = difference(PREDICTED, measured)
    assert d.duration_s == 0
    assert len(d.matched) == len(PREDICTED.spans) - 2
    assert {m.predicted.kind: m.duration_s for m in d.matched if m.duration_s} == later
    assert [s.kind for s in d.only_predicted] == ["wait", "wait"]
    assert [s.kind for s in d.only_measured] == ["encode"]
    assert d.by_kind()["backward"] == (2, 2.5)
    assert d.by_kind()["encode"] == (0, 0.5)


def test_difference_pairs_spans_of_one_key_in_order() -> None:
    one = Timeline(1, (Span(0, "reduce", 5, 6), Span(0, "reduce", 0, 1)))
    two = Timeline(1, (Span(0, "reduce", 0.5, 1), Span(0, "reduce", 7, 8)))
    assert [(m.predicted.start_s, m.start_s) for m in difference(one, two).matched] == [(0, 0.5), (5, 2)]
    same = difference(one, one)
    assert all(m.start_s == m.duration_s == 0 for m in same.matched)
    assert same.only_predicted == same.only_measured == ()


def test_chrome_trace_is_json_in_microseconds() -> None:
    trace = json.loads(json.dumps(chrome_trace(PREDICTED, ("paris", "tokyo"))))
    events = trace["traceEvents"]
    assert {e["args"]["name"] for e in events if e["name"] == "process_name"} == {
        "rank 0 paris",
        "rank 1 tokyo",
    }
    complete = [e for e in events if e["ph"] == "X"]
    assert {"name": "forward 0", "pid": 1, "ts": 2e6, "dur": 1e6}.items() <= complete[2].items()
    begins = {e["id"]: e["ts"] for e in events if e["ph"] == "b"}
    ends = {e["id"]: e["ts"] for e in events if e["ph"] == "e"}
    assert sorted((begins[i], ends[i]) for i in begins) == [(1e6, 2e6), (4e6, 5e6)]

"""A trace means the same after writing, resampling and cutting; a link is what its row says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.trace import (
    CONVENTIONS,
    About,
    LinkState,
    Node,
    Row,
    Sampler,
    Trace,
    TraceError,
    series,
    steady,
)
from scheduler.trace_text import CSV, JSON, NODES_CSV, parse_trace
from scheduler.trace_write import format_trace

quick = settings(max_examples=40, deadline=None)
figures = st.none() | st.floats(0, 1e6, allow_subnormal=False)
names = st.text(
    st.characters(min_codepoint=33, max_codepoint=0x2FF, categories=("L", "N", "P", "S")),
    min_size=1,
    max_size=6,
)


@st.composite
def rows(draw: st.DrawFn) -> list[Row]:
    times = sorted(draw(st.sets(st.floats(0, 1e5, allow_subnormal=False), min_size=1, max_size=6)))
    return [
        (
            t,
            draw(figures),
            draw(st.none() | st.floats(1e-3, 1e12)),
            draw(figures),
            draw(st.none() | st.floats(0, 0.99, allow_subnormal=False)),
        )
        for t in times
    ]


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    labels = draw(st.lists(names, min_size=2, max_size=4, unique=True))
    degrees = st.none() | st.floats(-90, 90, allow_subnormal=False)
    nodes = {
        n: Node(
            n,
            draw(st.sampled_from(["", "aws"])),
            "r, 1",
            draw(degrees),
            draw(degrees),
            draw(st.integers(1, 9)),
        )
        for n in labels
    }
    pairs = st.sampled_from([(a, b) for a in labels for b in labels if a != b])
    links = {pair: series(draw(rows())) for pair in draw(st.lists(pairs, min_size=1, unique=True))}
    positive = st.none() | st.integers(1, 10**9).map(lambda k: k / 1000)
    about = About(
        draw(st.sampled_from([0.5, 1.0])), "rtt", "one flow", draw(positive), draw(positive), draw(positive),
        source="us “here”", licence="MIT", other={"n": [1, 2]},
    )  # fmt: skip
    return Trace("t", nodes, links, about)


def text_of(trace: Trace) -> dict[str, str]:
    return {suffix: "".join(lines) for suffix, lines in format_trace(trace).items()}


def parsed(text: dict[str, str]) -> Trace:
    lines = {suffix: text[suffix].splitlines(keepends=True) for suffix in (CSV, NODES_CSV)}
    return parse_trace("t", "t", lines[CSV], lines[NODES_CSV], text[JSON])


@quick
@given(traces())
def test_what_is_written_is_read_back_to_the_last_bit(trace: Trace) -> None:
    text = text_of(trace)
    assert parsed(text) == trace
    assert text_of(parsed(text)) == text


@quick
@given(st.decimals(0, 10**6, places=3), st.decimals("0.001", 10**6, places=3))
def test_figures_keep_their_digits(rtt_ms: object, bw_mbps: object) -> None:
    head = "t_s,src,dst,rtt_ms,bw_mbps\n"
    nodes = "node,provider,region,latitude,longitude,n_devices\na,,,,,1\nb,,,,,1\n"
    meta = '{"format": "link-trace/1", "latency_kind": "rtt", "one_way_factor": 0.5, "bw_kind": "x"}'
    trace = parsed({CSV: f"{head}0,a,b,{rtt_ms},{bw_mbps}\n", NODES_CSV: nodes, JSON: meta})
    written = text_of(trace)[CSV].splitlines()[1].split(",")
    assert [float(written[3]), float(written[4])] == [float(str(rtt_ms)), float(str(bw_mbps))]
    assert len(written[3]) <= len(str(rtt_ms))
    assert trace.at(0, "a", "b").rtt_s == float(f"{rtt_ms}e-3")


@quick
@given(traces(), st.floats(0, 2e5))
def test_matrices_are_what_each_link_is(trace: Trace, t_s: float) -> None:
    sampler = Sampler(trace)
    found = sampler.at(t_s)
    for i, a in enumerate(sampler.names):
        for j, b in enumerate(sampler.names):
            cells = (found.rtt_s, found.one_way_s, found.bandwidth_Bps, found.jitter_s, found.loss)
            state = LinkState(*(None if np.isnan(m[i, j]) else float(m[i, j]) for m in cells))
            if (a, b) in trace.links:
                assert state == trace.at(t_s, a, b)
            elif a != b:
                assert state == LinkState(None, None, None)
            else:
                assert (state.rtt_s, state.bandwidth_Bps) == (
                    trace.about.within_rtt_s,
                    trace.about.within_bandwidth_Bps,
                )


@quick
@given(traces(), st.sampled_from([0.1, 1.0, 3.7, 1000.0, 3e5]), st.lists(st.integers(0, 2000), max_size=20))
def test_resampled_is_the_same_at_every_step(trace: Trace, step_s: float, ticks: list[int]) -> None:
    coarse = trace.resampled(step_s)
    assert coarse.n_rows <= trace.n_rows + len(trace.links)
    for pair, link in coarse.links.items():
        assert (np.diff(link.times_s) > 0).all()
        for k in [*ticks, *range(4)]:
            assert coarse.at(k * step_s, *pair) == trace.at(k * step_s, *pair)
        assert np.allclose(link.times_s / step_s, np.round(link.times_s / step_s))


eighths = st.integers(0, 800).map(lambda k: k / 8)


@quick
@given(
    st.lists(st.tuples(eighths, figures), min_size=1, unique_by=lambda r: r[0]),
    eighths,
    eighths,
    st.lists(eighths),
)
def test_a_window_is_what_happened_in_it(
    given_rows: list[tuple[float, float | None]], start_s: float, length_s: float, moments: list[float]
) -> None:
    link = series([(t, rtt, None, None, None) for t, rtt in sorted(given_rows)])
    trace = Trace("t", {n: Node(n) for n in "ab"}, {("a", "b"): link}, About(0.5))
    length_s = length_s or 1.0
    cut = trace.window(start_s, start_s + length_s)
    assert cut.duration_s < length_s
    for u in [0.0, *(m % length_s for m in moments)]:
        assert cut.at(u, "a", "b") == trace.at(start_s + u, "a", "b")


@quick
@given(traces(), st.data())
def test_a_subset_keeps_its_links(trace: Trace, data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(list(trace.nodes)), min_size=1, unique=True))
    part = trace.subset(chosen)
    assert list(part.nodes) == chosen
    assert part.links == {p: link for p, link in trace.links.items() if {*p} <= {*chosen}}


def two(rtt_s: float | None = 0.1, factor: float = 0.5) -> Trace:
    return Trace("two", {n: Node(n) for n in "ab"}, {("a", "b"): steady(rtt_s, 1e6)}, About(factor))


def test_conventions_have_names() -> None:
    assert two().under("paper").at(0, "a", "b").one_way_s == 0.1
    assert two(factor=1.0).under("physical").at(0, "a", "b").one_way_s == 0.05
    assert set(CONVENTIONS) == {"paper", "physical"}
    with pytest.raises(TraceError, match="'metaphysical', required paper or physical"):
        two().under("metaphysical")


def test_changes_come_once_and_in_order() -> None:
    times_s = {("a", "b"): (0.0, 5.0), ("b", "a"): (2.0, 5.0, 9.0)}
    links = {pair: series([(t, 0.1, None, None, None) for t in times]) for pair, times in times_s.items()}
    trace = replace(two(), links=links)
    assert trace.change_times_s().tolist() == [0, 2, 5, 9]
    assert trace.duration_s == 9
    assert trace.n_rows == 5


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (lambda: two().subset(["a", "c"]), "unknown c; required different ones of: a, b"),
        (lambda: two().subset(["a", "a"]), "a, a"),
        (lambda: two().subset([]), "none"),
        (lambda: two().window(5, 5), "window 5 to 5"),
        (lambda: two().window(-1, 5), "window -1 to 5"),
        (lambda: two().resampled(0), "step of 0"),
        (lambda: two().resampled(float("nan")), "step of nan"),
        (lambda: series([]), "without a row"),
        (lambda: series([(0, 1, 1, None, None), (0, 1, 1, None, None)]), "do not ascend"),
        (lambda: series([(-1, 1, 1, None, None)]), "do not ascend"),
        (lambda: steady(-1, 1), "negative"),
        (lambda: steady(1, 0), "bandwidth of 0"),
        (lambda: series([(0, 1, 1, None, 1.0)]), "loss of 1"),
    ],
)
def test_what_cannot_be_is_refused(bad: Callable[[], object], says: str) -> None:
    with pytest.raises(TraceError, match=says):
        bad()

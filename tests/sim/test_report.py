"""Pictures and pages: what is drawn is what was given, and nothing of the data can break out of the page."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from scheduler.timeline import Span, Timeline
from sim.pictures import Series, curve, gantt, ticks
from sim.report import RunReport, page

STEP = Timeline(
    2,
    (
        Span(0, "forward", 0.0, 1.0, mb=0),
        Span(0, "send", 1.0, 1.5, mb=0, peer=1, n_bytes=4096),
        Span(1, "wait", 0.0, 1.5),
        Span(1, "forward", 1.5, 2.5, mb=0),
    ),
)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (0.93, 1.21, [1.0, 1.1, 1.2]), (3, 3, [3])],
)
def test_ticks_are_round_and_inside(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_gantt_draws_every_span_to_scale() -> None:
    svg = ElementTree.fromstring(gantt(STEP, ["w0", "w1"], "step", end_s=2.5))
    rects = list(svg.iter("rect"))
    assert len(rects) == len(STEP.spans)
    widths = [float(r.attrib["width"]) for r in rects]
    assert widths[1] == pytest.approx(widths[0] / 2, abs=0.02)
    assert widths[2] == pytest.approx(widths[0] * 1.5, abs=0.02)
    tips = [t.text for t in svg.iter("title")]
    assert "send of micro-batch 0: 1.000 to 1.500 s, 4,096 bytes" in tips


def test_curve_passes_through_its_points_and_names_its_axes() -> None:
    svg = curve((Series("training", ((1, 2.0), (2, 1.0), (3, 0.5))),), "step", "loss, nats a token")
    points = re.search(r'points="([^"]+)"', svg)
    assert points is not None
    ys = [float(p.split(",")[1]) for p in points[1].split()]
    assert ys == sorted(ys)  # a falling loss goes down the page, where y grows
    assert "loss, nats a token" in svg
    assert ">training</text>" in svg


def test_labels_of_lines_that_end_together_do_not_cover_each_other() -> None:
    svg = curve((Series("a", ((0, 1.0), (1, 1.0))), Series("b", ((0, 2.0), (1, 1.0)))), "x", "y")
    ys = [float(y) for y in re.findall(r'y="([\d.]+)" style=', svg)]
    assert abs(ys[0] - ys[1]) >= 12


def test_curve_without_data_says_so() -> None:
    assert "nothing was recorded" in curve((Series("loss", ()),), "step", "loss")


def test_page_needs_no_network_and_escapes_what_it_is_given() -> None:
    report = RunReport(
        title="<script>alert(1)</script>",
        subtitle="two workers",
        figures=(("held-out loss", "1.51"),),
        loss=((1, 3.0), (2, 2.0)),
        timeline_step=2,
        predicted=STEP,
        measured=STEP,
        labels=("w0", "w1"),
        tables=(("Links", ("from", "to"), (("w0", "w1"),)),),
        reasons=("2 stages: 1.2 s",),
        sample="To be & not",
    )
    html = page(report)
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert not re.search(r'(src|href)="', html)
    assert html.count("<svg") == 4  # loss, step time, predicted, measured
    assert "To be &amp; not" in html


def test_page_leaves_out_what_was_not_recorded() -> None:
    html = page(RunReport(title="t", subtitle="s", figures=()))
    assert "predicted above measured" not in html
    assert "Why this plan" not in html

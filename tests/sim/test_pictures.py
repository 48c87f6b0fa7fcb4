"""What is drawn is what was given: to scale, named, inside its frame, the same as SVG and as PNG."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import matplotlib.image
import pytest

from scheduler.plan import Plan
from scheduler.scenarios import POSITIONS
from scheduler.timeline import Span, Timeline
from sim.canvas import DARK, LIGHT, Clipped, Dot, Line, Picture, Rect, Shape, Text, stacked, text_px, ticks
from sim.gantt import MAX_TIPS, gantt
from sim.pictures import NARROW, WIDE, Axis, Bar, Series, bars, curve, short
from sim.placed import Placed, placed_by
from sim.placement_grid import placement_grid
from sim.svg import save, svg
from sim.trace import load
from sim.weather import link_matrix, weather
from sim.world_map import Globe, placement_map

SVG = "{http://www.w3.org/2000/svg}"
STEP = Timeline(
    2,
    (
        Span(0, "forward", 0.0, 1.0, mb=0),
        Span(0, "send", 1.0, 1.5, mb=0, peer=1, n_bytes=4096),
        Span(1, "wait", 0.0, 1.5),
        Span(1, "forward", 1.5, 2.5, mb=0),
    ),
)


def flat(shapes: tuple[Shape, ...]) -> list[Shape]:
    return [inner for s in shapes for inner in (flat(s.shapes) if isinstance(s, Clipped) else [s])]


def texts(picture: Picture) -> list[str]:
    return [s.text for s in flat(picture.shapes) if isinstance(s, Text)]


def example_pictures(width: float = WIDE) -> list[Picture]:
    placed = Placed(
        (("a0", "a1"), ("b0", "b1")),
        {"a0": "Oregon", "a1": "Oregon", "b0": "Tokyo", "b1": "London"},
        POSITIONS,
        {("a0", "b0"): 4e9, ("a1", "b1"): 1e9},
        {("a0", "b0"): 0.25},
        "b1",
    )
    on_map = placement_map(placed, "Pipelines", width)
    assert on_map is not None
    return [
        on_map,
        placement_grid(placed, "Who holds what", width),
        gantt(STEP, ["w0", "w1-with-quite-a-long-name"], "One step: 2.5 s", 2.5, width),
        bars([Bar("ours", (("compute", 3.0), ("bubble", 1.0)))], "Seconds of a step", width),
        curve(
            [Series("4 bits", ((1, 2), (10, 3)))], Axis("Mbit/s", log=True), Axis("tokens/s"), "Speed", width
        ),
        weather(load("synthetic_day"), ((0, 1.0), (3600, 1.5)), width),
        link_matrix(load("four_cities"), width=width),
        link_matrix(load("aws_2022"), width=width),
        curve([], Axis("step"), Axis("loss"), "Loss", width),
    ]


# ---- every picture


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_every_picture_has_a_title_a_text_alternative_and_letters_that_fit(width: float) -> None:
    for picture in example_pictures(width):
        root = ElementTree.fromstring(svg(picture))
        assert root.attrib["role"] == "img"
        label = root.attrib["aria-label"]
        assert label.startswith(picture.title)
        assert len(label) > len(picture.title) + 10
        assert picture.title.split()[0] in " ".join(texts(picture))
        for s in flat(picture.shapes):
            if isinstance(s, Text):
                w = 0.9 * text_px(s.text, s.size)
                left = {"start": s.x, "middle": s.x - w / 2, "end": s.x - w}[s.anchor]
                assert left >= -6, (picture.title, s.text)
                assert left + w <= picture.width + 6, (picture.title, s.text)
                assert 0 <= s.y <= picture.height, (picture.title, s.text)


def test_svg_files_stand_alone_in_both_themes(tmp_path: Path) -> None:
    for k, picture in enumerate(example_pictures()):
        save(tmp_path / f"{k}.svg", picture)
        text = (tmp_path / f"{k}.svg").read_text()
        root = ElementTree.fromstring(text)
        assert root.find(f"{SVG}title") is not None
        assert "prefers-color-scheme:dark" in text
        used = set(re.findall(r"var\(--([\w]+)\)", text))
        assert used <= set(LIGHT) == set(DARK)
        assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_png_files_have_twice_the_pixels_and_are_not_blank(tmp_path: Path) -> None:
    for k, picture in enumerate(example_pictures()):
        save(tmp_path / f"{k}.png", picture)
        pixels = matplotlib.image.imread(tmp_path / f"{k}.png")
        high, wide = pixels.shape[:2]
        assert (wide, high) == (
            round(2 * (picture.width + 40)),
            pytest.approx(2 * (picture.height + 40), abs=2),
        )
        assert pixels.std() > 0.01
        assert (tmp_path / f"{k}.png").stat().st_size < 2_000_000


def test_a_format_nobody_knows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wav"):
        save(tmp_path / "a.wav", example_pictures()[1])


def test_pictures_do_not_depend_on_the_process() -> None:
    assert [svg(p) for p in example_pictures()] == [svg(p) for p in example_pictures()]


def test_stacked_pictures_stand_below_each_other() -> None:
    a = Picture(100, 50, "a", "A.", (Rect(0, 0, 10, 10, "ink"), Dot(5, 5, 2, "hue0")))
    both = stacked([a, a], "both", margin=5, gap=10)
    assert (both.width, both.height) == (110, 120)
    assert [s.y for s in both.shapes if isinstance(s, Rect)] == [5, 65]


# ---- curves and bars


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (0.93, 1.21, [1.0, 1.1, 1.2]), (3, 3, [3])],
)
def test_ticks_are_round_and_inside(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(("value", "said"), [(12000, "12,000"), (0.25, "0.25"), (3, "3"), (2e-7, "2e-07")])
def test_numbers_are_short(value: float, said: str) -> None:
    assert short(value) == said


def lines(picture: Picture, colour: str) -> list[Line]:
    return [s for s in flat(picture.shapes) if isinstance(s, Line) and s.stroke == colour]


def test_curve_passes_through_its_points_and_names_its_axes() -> None:
    picture = curve(
        [Series("training", ((1, 2.0), (2, 1.0), (3, 0.5)))], Axis("step"), Axis("loss, nats"), "Loss"
    )
    (line,) = lines(picture, "hue0")
    xs, ys = zip(*line.points, strict=True)
    assert ys[0] < ys[1] < ys[2]  # a falling loss goes down the page, where y grows
    assert ys[1] - ys[0] == pytest.approx(2 * (ys[2] - ys[1]))
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1])
    assert {"loss, nats", "step", "training"} <= set(texts(picture))


def test_a_logarithmic_axis_puts_decades_equally_far_apart() -> None:
    points = ((10.0, 1.0), (100.0, 1.0), (1000.0, 2.0))
    (line,) = lines(curve([Series("a", points)], Axis("x", log=True), Axis("y"), "t"), "hue0")
    xs = [x for x, _ in line.points]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1])


def test_held_series_are_level_until_the_next_point() -> None:
    (line,) = lines(curve([Series("a", ((0, 1), (5, 3)), held=True)], Axis("x"), Axis("y"), "t"), "hue0")
    (_, first), (x, before), (same_x, after) = line.points
    assert (first, x) == (before, same_x)
    assert after < before


def test_labels_of_lines_that_end_together_do_not_cover_each_other() -> None:
    series = [Series(f"line {k}", ((0, k), (1, 1.0))) for k in range(4)]
    picture = curve(series, Axis("x"), Axis("y"), "t")
    ys = sorted(s.y for s in picture.shapes if isinstance(s, Text) and s.text.startswith("line"))
    assert all(b - a >= 14 for a, b in pairwise(ys))


def test_curve_without_data_says_so() -> None:
    assert "nothing was recorded" in texts(curve([Series("loss", ())], Axis("step"), Axis("loss"), "Loss"))


def test_bars_share_a_scale_and_write_their_seconds() -> None:
    given = [
        Bar("ours", (("compute", 3.0), ("bubble", 1.0))),
        Bar("theirs", (("compute", 3.0), ("bubble", 5.0))),
    ]
    picture = bars(given, "Seconds")
    parts = [s for s in picture.shapes if isinstance(s, Rect) and s.tip]
    assert [p.width / parts[0].width for p in parts] == pytest.approx([1, 1 / 3, 1, 5 / 3])
    assert {"3.00 s", "1.00 s", "5.00 s", "4.00 s", "8.00 s", "ours", "theirs"} <= set(texts(picture))


# ---- the timeline


def test_gantt_draws_every_span_to_scale() -> None:
    picture = gantt(STEP, ["w0", "w1"], "step", end_s=2.5)
    rects = [s for s in flat(picture.shapes) if isinstance(s, Rect) and s.tip]
    assert len(rects) == len(STEP.spans)
    assert rects[1].width == pytest.approx(rects[0].width / 2)
    assert rects[2].width == pytest.approx(rects[0].width * 1.5)
    assert "send of micro-batch 0: 1.000 to 1.500 s, 4,096 bytes" in [r.tip for r in rects]
    assert "2 devices over 2.50 s; of their time: forward 40%, wait 30%" in picture.description


def test_two_timelines_share_a_scale() -> None:
    half = gantt(STEP, ["w0", "w1"], "step", end_s=5.0)
    whole = gantt(STEP, ["w0", "w1"], "step", end_s=2.5)
    widths = [next(s.width for s in flat(p.shapes) if isinstance(s, Rect) and s.tip) for p in (half, whole)]
    assert widths[1] == pytest.approx(2 * widths[0])


def test_many_spans_become_one_shape_a_colour_and_few_bytes() -> None:
    spans = tuple(Span(r, "forward", m, m + 0.5, mb=m) for r in range(64) for m in range(100))
    assert len(spans) > MAX_TIPS
    text = svg(gantt(Timeline(64, spans), [f"device-{r}" for r in range(64)], "step", 100.0))
    assert len(text) < 40 * len(spans)
    assert text.count("<path") < 40


def test_a_thousand_devices_fit_on_a_page() -> None:
    spans = tuple(Span(r, "forward", 0, 1) for r in range(1024))
    assert gantt(Timeline(1024, spans), [""] * 1024, "step", 1.0).height < 5000


# ---- map and grid


def test_arcs_are_as_wide_as_the_bytes_they_carry_and_coloured_by_replica() -> None:
    picture = example_pictures()[0]
    arcs = {s.tip: s for s in flat(picture.shapes) if isinstance(s, Line) and s.tip.startswith("replica")}
    heavy, light = arcs["replica 0: Oregon to Tokyo, 3.73 GiB"], arcs["replica 1: London to Oregon, 954 MiB"]
    assert heavy.width > 2 * light.width
    assert (heavy.stroke, light.stroke) == ("hue0", "hue1")
    assert "slowest: 250 ms" in texts(picture)
    assert {"Oregon · 2", "Tokyo · 1", "London · 1"} <= set(texts(picture))


def test_the_map_is_cut_where_nobody_is() -> None:
    globe = Globe({"Tokyo": (35.7, 139.7), "Oregon": (45.5, -122.7)}, 900, 0)
    (tokyo, _), (oregon, _) = globe.at(35.7, 139.7), globe.at(45.5, -122.7)
    assert 0 < tokyo < oregon < 900  # over the Pacific, not round the world
    assert globe.land()


def test_there_is_no_map_of_one_place_or_of_unknown_ones() -> None:
    assert placement_map(Placed((("a",),), {"a": "Oregon"}, POSITIONS), "t") is None
    assert placement_map(Placed((("a",), ("b",)), {"a": "Oregon", "b": "Atlantis"}, POSITIONS), "t") is None


def test_a_plan_is_placed_with_what_its_step_sent() -> None:
    plan = Plan(1, (("w0", "w1"),), ((0, 1), (1, 2)), (1,), "gpipe")
    placed = placed_by(plan, STEP, {"w0": "Oregon"}, POSITIONS)
    assert placed.stages == (("w0",), ("w1",))
    assert placed.regions == {"w0": "Oregon", "w1": "w1"}
    assert placed.hop_bytes == {("w0", "w1"): 4096}


# ---- the network over time


def test_weather_shows_few_links_by_name_and_many_by_their_spread() -> None:
    trace = load("synthetic_day")
    assert {"median", "slow tenth", "fast tenth"} <= set(texts(weather(trace)))
    two = trace.subset(["Oregon", "Tokyo"])
    assert "Oregon → Tokyo" in texts(weather(two))
    assert "step time under this network, s" in texts(weather(two, ((0.0, 1.0), (7200.0, 2.0))))


def test_weather_leaves_out_what_is_unknown() -> None:
    said = " ".join(texts(weather(load("seattle6"))))
    assert "round trip" in said
    assert "bandwidth" not in said


def test_a_matrix_of_links_has_a_cell_a_link_darker_where_it_is_slower() -> None:
    picture = link_matrix(load("four_cities"))
    cells = {s.tip: s.fill for s in flat(picture.shapes) if isinstance(s, Rect) and s.tip}
    assert len(cells) == 24  # round trips and bandwidths of 12 links
    near, far = cells["Oregon to Virginia: 67 ms"], cells["Tokyo to London: 210 ms"]
    assert int(near[1:3], 16) > int(far[1:3], 16)
    assert {"67", "210", "366", "1,160"} <= set(texts(picture))


def test_wide_letters_are_given_room() -> None:
    """`megatron` was cut off at its left end when all letters were taken as equally wide."""
    assert text_px("megatron") > text_px("negatron")


def test_charts_of_one_axis_stand_in_line_whatever_their_labels() -> None:
    x, y = Axis("hours", span=(0.0, 4.0)), Axis("s", from_zero=True)
    points = ((0.0, 1.0), (4.0, 2.0))

    def ticks_at(label: str, room_for: tuple[str, ...]) -> list[float]:
        drawn = curve([Series(label, points)], x, y, "", room_for=room_for)
        return [s.x for s in drawn.shapes if isinstance(s, Text) and s.text in "01234"]

    assert ticks_at("step", ("slow tenth",)) == ticks_at("slow tenth", ())
    assert ticks_at("step", ()) != ticks_at("slow tenth", ())

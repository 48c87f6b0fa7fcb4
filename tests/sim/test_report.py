"""A report is one page that needs nothing else, its pictures as files, and nothing can break out of it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

from scheduler.scenarios import POSITIONS
from sim.gantt import MAX_TIPS
from sim.placed import Placed
from sim.report import Contents, Step, Table, page, write_report
from sim.trace import load
from tests.sim.test_pictures import STEP

VOID = {"meta", "br", "img", "link", "input", "hr"}
FULL = Contents(
    title="<script>alert(1)</script>",
    subtitle="two workers & a shaper",
    figures=(("held-out loss", "1.51"), ("step", "1.2 s")),
    placed=Placed((("w0",), ("w1",)), {"w0": "Oregon", "w1": "Tokyo"}, POSITIONS, {("w0", "w1"): 4096}),
    steps=(Step("predicted", STEP, ("w0", "w1")), Step("measured", STEP, ("w0", "w1"))),
    throughput=(("fp16", ((1e7, 10.0), (1e8, 90.0))), ("4 bits", ((1e7, 40.0), (1e8, 110.0)))),
    trace=load("synthetic_day"),
    step_over_time=((0, 1.0), (3600, 1.5)),
    loss=((1, 3.0), (2, 2.0)),
    held_out=((2, 2.5),),
    step_times=(("measured", ((1, 1.0), (2, 1.1))), ("predicted", ((1, 1.0), (2, 1.0)))),
    tables=(Table("Links", ("from", "to", "ms"), (("w0", "w1", "67"), ("w1", "w<0", "67"))),),
    reasons=("2 stages: 1.2 s",),
    sample="To be & not",
)


class Checker(HTMLParser):
    """Every tag that is opened is closed, in order; collects tags, attributes and headings."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def checked(html: str) -> Checker:
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert checker.open == []
    return checker


def test_page_is_whole_needs_no_network_and_escapes_what_it_is_given() -> None:
    html = page(FULL)
    checker = checked(html)
    assert html.startswith("<!doctype html>")
    assert not re.search(r"https?:", html.replace('"http://www.w3.org/2000/svg"', ""))
    for _, attributes in checker.seen:
        assert not {"src", "href"} & attributes.keys()
    assert "<script>alert" not in html
    assert [tag for tag, _ in checker.seen].count("script") == 1
    assert "To be & not" in checker.text
    assert "w<0" in checker.text


def test_every_picture_has_words_for_those_who_do_not_see_it() -> None:
    pictures = [a for tag, a in checked(page(FULL)).seen if tag == "svg"]
    assert len(pictures) >= 12
    for attributes in pictures:
        assert attributes["role"] == "img"
        assert len(attributes["aria-label"] or "") > 30


def test_names_of_clips_are_used_once() -> None:
    names = [a["id"] for tag, a in checked(page(FULL)).seen if tag.lower() == "clippath"]
    assert names
    assert len(names) == len(set(names))


def test_a_page_shows_light_and_dark_desk_and_phone() -> None:
    html = page(FULL)
    assert html.count("prefers-color-scheme:dark") == 1
    assert 'name="viewport"' in html
    assert html.count('class="phone"') == html.count('class="desk"') >= 5


def test_page_leaves_out_what_was_not_recorded() -> None:
    html = page(Contents(title="t"))
    checked(html)
    assert "<svg" not in html
    for heading in ("Why this plan", "Step by step", "Where it runs", "What the model writes"):
        assert heading not in html


def test_numbers_of_a_table_stand_on_the_right() -> None:
    html = page(Contents("t", tables=(Table("T", ("name", "ms"), (("8 x 2", "1.2 s"), ("1f1b", "-3"))),)))
    assert '<th>name</th><th class="number">ms</th>' in html
    assert html.count('<td class="number">') == 2


def test_sentences_of_a_table_are_wrapped_and_short_cells_are_not() -> None:
    rows = (("1,273", "lost"), ("1,274", "another plan, because " + "one thing led to another " * 4))
    html = page(Contents("t", tables=(Table("What happened", ("at, s", "what"), rows),)))
    assert html.count('class="words"') == 3
    assert "td.words { white-space: normal;" in html
    assert 'class="words"' not in page(FULL)


def test_a_phone_sees_the_whole_step_unless_it_has_too_many_spans() -> None:
    many = replace(STEP, spans=STEP.spans * MAX_TIPS)
    for step, drawings in ((STEP, 2), (many, 1)):
        html = page(Contents("t", steps=(Step("predicted", step, ("w0", "w1")),)))
        assert html.count('class="zoom"') == drawings


def test_a_report_is_written_with_its_pictures_and_traces(tmp_path: Path) -> None:
    target = write_report(tmp_path / "new" / "report", FULL)
    names = {p.name for p in target.parent.iterdir()}
    pictures = {
        "map",
        "grid",
        "timeline-predicted",
        "timeline-measured",
        "time",
        "throughput",
        "network",
        "loss",
        "step-time",
    }
    assert {f"{p}.{kind}" for p in pictures for kind in ("svg", "png")} <= names
    assert target.read_text(encoding="utf-8") == page(FULL)
    trace = json.loads((target.parent / "timeline-measured.trace.json").read_text())
    assert {e["ph"] for e in trace["traceEvents"]} == {"M", "X", "b", "e"}
    assert any(e["args"].get("name") == "rank 0 w0" for e in trace["traceEvents"])


def test_a_page_alone_needs_no_pictures(tmp_path: Path) -> None:
    write_report(tmp_path, FULL, pictures=False)
    assert {p.suffix for p in tmp_path.iterdir()} == {".html", ".json"}

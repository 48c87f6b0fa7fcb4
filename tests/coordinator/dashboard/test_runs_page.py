"""The page of runs in a real browser, by keyboard alone: listed, found, chosen, compared, opened."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

pytest.importorskip("starlette")

from coordinator.dashboard import server
from coordinator.dashboard.board import Board
from coordinator.dashboard.guard import Readers
from coordinator.dashboard.replay import board_of
from coordinator.dashboard.runs import Below
from coordinator.tokens import Tokens

from .browser import WAIT_MS, browser, requests_of, served, why_no_browser
from .recorded import BEGAN_S, record


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    if missing := why_no_browser():
        pytest.skip(missing)
    record(tmp_path / "a", "tiny-a", 8)
    record(tmp_path / "b", "tiny-b", 6, began_s=BEGAN_S + 60, schedule="{name: gpipe}")
    record(tmp_path / "old" / "c", "other-c", 4, began_s=BEGAN_S - 60, ended=False)
    return tmp_path


@pytest.fixture
def address(runs: Path) -> Iterator[str]:
    with served(board_of(runs / "b"), runs / "b", below=Below(runs)) as found:
        yield found


@pytest.mark.parametrize("width", [390, 1400])
def test_runs_are_found_chosen_and_compared_by_keyboard(address: str, width: int) -> None:
    from playwright.sync_api import expect

    with browser() as opened:
        page = opened.new_page(viewport={"width": width, "height": 900})
        page.set_default_timeout(WAIT_MS)
        asked = requests_of(page)
        page.goto(address)
        page.get_by_role("link", name="Runs").focus()
        page.keyboard.press("Enter")
        rows = page.get_by_role("region", name="3 runs").locator("tbody tr")
        expect(rows).to_have_count(3)
        expect(rows.first).to_contain_text("6 of 8")
        expect(page.get_by_role("heading", name="Compared")).to_be_hidden()

        page.get_by_label("Show those with").focus()
        page.keyboard.type("tiny finished")
        expect(rows).to_have_count(2)
        for name in ("tiny-b of b", "tiny-a of a"):
            box = page.get_by_role("checkbox", name=f"Compare {name}")
            for _ in range(8):
                if box.evaluate("node => node === document.activeElement"):
                    break
                page.keyboard.press("Tab")
            expect(box).to_be_focused()
            page.keyboard.press("Space")
            expect(box).to_be_checked()
            expect(box).to_be_focused()
        expect(page.get_by_role("status")).to_have_text("2 chosen")
        assert parse_qs(urlsplit(page.url).query) == {"compare": ["b", "a"]}

        figures = page.get_by_role("region", name="Final figures")
        expect(figures.get_by_role("columnheader")).to_have_text(["tiny-b", "tiny-a"])
        expect(figures.get_by_role("row", name=re.compile("^tokens.s"))).to_contain_text("256")
        expect(figures.get_by_role("row", name=re.compile("^tokens.s"))).to_contain_text("320")
        settings = page.get_by_role("region", name="Settings that differ").locator("tbody tr")
        expect(settings).to_have_count(1)
        expect(settings).to_have_text(re.compile("schedule.name.*gpipe.*1f1b"))
        for title in ("Loss by step", "Held-out loss by step", "Seconds of a step"):
            chart = page.get_by_role("img", name=re.compile(f"{title}; last: tiny-b .*, tiny-a .*"))
            expect(chart.locator("canvas")).to_be_visible()
        for named in page.locator("[tabindex], a, input, button, [role=img]").all():
            if named.is_visible():
                expect(named).to_have_accessible_name(re.compile(r"\S"))
        assert page.evaluate("document.documentElement.scrollWidth") == width, "nothing sticks out"

        page.reload()
        expect(figures.get_by_role("columnheader")).to_have_text(["tiny-b", "tiny-a"])
        page.get_by_role("button", name="Choose none").focus()
        page.keyboard.press("Enter")
        expect(figures).to_be_hidden()
        assert urlsplit(page.url).query == ""
        elsewhere = [url for url in asked if not url.startswith((address, "data:"))]
    assert elsewhere == []


def test_a_run_that_has_ended_is_opened_with_all_that_is_kept_of_it(address: str) -> None:
    from playwright.sync_api import expect

    with browser() as opened:
        page = opened.new_page()
        page.set_default_timeout(WAIT_MS)
        asked = requests_of(page)
        page.goto(f"{address}runs")
        page.get_by_role("link", name="tiny-a").press("Enter")
        expect(page.get_by_role("heading", level=1)).to_have_text("tiny-a")
        expect(page.get_by_role("status")).to_have_text("finished")
        expect(page.get_by_label("What happened, last first")).to_contain_text("no heartbeat")
        expect(page.get_by_role("region", name="Plans so far").locator("tbody tr")).to_have_count(2)
        page.get_by_role("img", name=re.compile("One step of 4 ranks")).wait_for()
        page.get_by_role(
            "img", name=re.compile(r"Loss by step; last: training 3\.342, held out 3\.442")
        ).wait_for()
        expect(page.get_by_role("link", name="JSON")).to_have_attribute("href", f"{address}api/run?run=a")
        assert not any("api/events" in url for url in asked), "it changes no more, and is not followed"
        page.get_by_role("link", name="The run", exact=True).press("Enter")
        expect(page.get_by_role("heading", level=1)).to_have_text("tiny-b")
        page.goto(f"{address}?run=nothing")
        expect(page.locator("#reason")).to_contain_text("required one that /api/runs lists")


def test_without_a_run_of_its_own_the_page_begins_with_the_list(runs: Path, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    with served(Board(), tmp_path / "none", below=Below(runs)) as address, browser() as opened:
        page = opened.new_page()
        page.set_default_timeout(WAIT_MS)
        page.goto(address)
        expect(page.get_by_role("heading", name="3 runs")).to_be_visible()
        expect(page.get_by_role("link", name="The run", exact=True)).to_have_count(0)


def test_a_page_whose_token_has_ended_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if missing := why_no_browser():
        pytest.skip(missing)
    from playwright.sync_api import expect

    monkeypatch.setattr(server, "ASK_AGAIN_S", 0.5)
    board, now = Board(), [1000.0]
    board.take({"event": "listening", "run": "r", "steps": 9, "step": 0, "min_workers": 1}, 0.0)
    with closing(Tokens(tmp_path)) as tokens, browser() as opened:
        token = tokens.create(1000.0, valid_s=60.0, purpose="dashboard")
        with served(board, tmp_path, Readers(tokens, lambda: now[0])) as address:
            page = opened.new_page()
            page.set_default_timeout(WAIT_MS)
            page.goto(f"{address}?token={token}")
            expect(page).to_have_url(address)
            expect(page.get_by_role("status")).to_have_text("gathering")
            now[0] = 1065.0
            expect(page.get_by_role("status")).to_have_text("refused")
            expect(page.locator("#reason")).to_contain_text("expired 5 s ago")

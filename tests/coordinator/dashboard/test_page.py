"""The page of a run with many workers, in a real browser: regions are counted, names are there on demand."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("starlette")

from coordinator.dashboard.board import Board

from .browser import WAIT_MS, browser, served, why_no_browser
from .simulated import Simulated

WORKERS, LOST = 500, 41


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    if missing := why_no_browser():
        pytest.skip(missing)
    run, board = Simulated(WORKERS), Board(job="many")
    for event in [*run.beginning(), *run.step(1), *run.lose(LOST), *run.step(2)]:
        board.take(event, 0.0)
    run.write_timeline(tmp_path)
    with served(board, tmp_path) as found:
        yield found


def test_of_500_workers_regions_are_counted_and_each_can_be_found(address: str) -> None:
    from playwright.sync_api import expect

    with browser() as opened:
        page = opened.new_page()
        page.set_default_timeout(WAIT_MS)
        page.goto(address)
        page.locator("#timeline svg").wait_for()
        pipelines = page.get_by_role("region", name="Pipelines")
        expect(pipelines.locator("tbody tr")).to_have_count(8)
        expect(pipelines.get_by_role("row", name=re.compile("layers 3–5"))).to_contain_text("1")
        workers = page.get_by_role("region", name="Workers")
        first = workers.locator("table").first
        expect(first.locator("tbody tr")).to_have_count(12)
        expect(workers.locator(f"#lost-w{LOST:03d}")).to_contain_text("no heartbeat")
        expect(page.locator(f"#worker-w{LOST:03d}")).to_have_count(0)
        assert page.locator("*").count() < 1500, "no element for every worker"
        workers.get_by_text(f"All {WORKERS} workers").click()
        expect(page.locator(f"#worker-w{LOST:03d}")).to_contain_text("gone")
        expect(page.locator("[id^=worker-]")).to_have_count(WORKERS)

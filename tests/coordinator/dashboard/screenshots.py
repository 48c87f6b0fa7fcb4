"""Pictures of a run's page, and of the page of runs, at three widths, light and dark.

    python -m tests.coordinator.dashboard.screenshots STATE_DIR OUT [--runs DIR]

Opens the run of STATE_DIR as `coordinator dashboard` does and writes OUT/dashboard-WIDTH-light.png and
-dark.png, with a palette: such pictures have few colours, and are a quarter as large. `simulated:N` for
STATE_DIR shows N workers. With --runs OUT/runs-WIDTH-light.png and -dark.png, too: the runs below DIR, with
the last three compared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from PIL import Image

from coordinator.dashboard.board import Board
from coordinator.dashboard.replay import board_of
from coordinator.dashboard.runs import Below, Runs

from .browser import WAIT_MS, browser, served, why_no_browser
from .simulated import Simulated

if TYPE_CHECKING:
    from playwright.sync_api import Browser

WIDTHS = (390, 820, 1400)
COLOURS = 256
TOP = 1700
"""Pixels of the widest page that dashboard.png shows."""
DRAWN = ("#timeline svg", "#time svg", "#loss canvas", "#seconds canvas", "#map svg")
COMPARED = ("#figures table", "#settings table", "#loss canvas", "#held canvas", "#seconds canvas")


def simulated_board(workers: int, state_dir: Path) -> Board:
    """Of a run of 300 steps that has lost a worker."""
    run = Simulated(workers)
    board = Board(job="simulated")
    told = [*run.beginning(), *(e for n in range(1, 200) for e in run.step(n)), *run.lose(17)]
    told += [e for n in range(200, 302) for e in run.step(n)]
    for i, event in enumerate(told):
        board.take(event, 1_790_000_000.0 + i)
    run.write_timeline(state_dir)
    return board


def picture(
    opened: Browser, address: str, width: int, scheme: Any, drawn: Sequence[str] = DRAWN
) -> Image.Image:
    """The whole page, once the parts `drawn` are there, with a palette."""
    page = opened.new_page(
        viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
    )
    page.set_default_timeout(WAIT_MS)
    page.goto(address)
    for part in drawn:
        page.locator(part).wait_for()
    page.add_style_tag(content="header { position: static !important }")
    raw = page.screenshot(full_page=True, animations="disabled")
    page.close()
    return (
        Image.open(BytesIO(raw))
        .convert("RGB")
        .quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", help="a state directory, or simulated:N")
    parser.add_argument("out", type=Path)
    parser.add_argument("--runs", type=Path)
    options = parser.parse_args()
    if missing := why_no_browser():
        print(missing, file=sys.stderr)
        return 1
    with TemporaryDirectory() as scratch:
        kind, _, n = options.run.partition(":")
        state_dir = Path(scratch) if kind == "simulated" else Path(options.run)
        board = simulated_board(int(n), state_dir) if kind == "simulated" else board_of(state_dir)
        below = Below(options.runs) if options.runs else None
        with served(board, state_dir, below=below) as address, browser() as opened:
            for width in WIDTHS:
                for scheme in ("light", "dark"):
                    image = picture(opened, address, width, scheme)
                    image.save(options.out / f"dashboard-{width}-{scheme}.png", optimize=True)
                    if below is not None:
                        names = [row["id"] for row in Runs(state_dir, below).rows()[:3]]
                        query = urlencode([("compare", name) for name in names])
                        runs = picture(opened, f"{address}runs?{query}", width, scheme, COMPARED)
                        runs.save(options.out / f"runs-{width}-{scheme}.png", optimize=True)
                    if (width, scheme) == (WIDTHS[-1], "light"):
                        image.crop((0, 0, width, TOP)).save(options.out / "dashboard.png", optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

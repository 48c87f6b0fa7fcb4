"""The dashboard under 200 and 500 simulated workers: what it costs the coordinator, how smooth its page is.

A process serves the board as `coordinator start --dashboard` does and tells it of a step every 2 s; no worker
exists. CPU and memory are that process's, over what it needed before it knew of a dashboard; one real page
looks on, in Chromium. Goals are of 200 workers: 5 % of one core, 200 MB, 30 frames a second.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from . import command

STEP_S = 2.0
GOAL_CORES, GOAL_BYTES, GOAL_FRAMES = 0.05, 200e6, 30.0
FRAMES = """seconds => new Promise(done => {
  let n = 0;
  const start = performance.now();
  const tick = () => {
    n += 1;
    const s = (performance.now() - start) / 1000;
    if (s < seconds) requestAnimationFrame(tick); else done(n / s);
  };
  requestAnimationFrame(tick);
})"""


def serve(workers: int, state_dir: Path) -> None:
    """The process that is measured: says where the page is, at each line of input what it used."""
    for name in ("coordinator.cli", "coordinator.run"):  # what every coordinator has loaded
        importlib.import_module(name)
    without_bytes = psutil.Process().memory_info().rss
    asyncio.run(_serve(workers, state_dir, without_bytes))


async def _serve(workers: int, state_dir: Path, without_bytes: int) -> None:
    from coordinator.dashboard.attach import Where, served
    from coordinator.dashboard.board import Board
    from tests.coordinator.dashboard.simulated import Simulated

    simulated, board = Simulated(workers), Board(job="simulated")
    for event in simulated.beginning():
        board.take(event, time.time())
    simulated.write_timeline(state_dir)
    simulated.write_links(state_dir)
    listening = socket.create_server(("127.0.0.1", 0))
    where = Where(f"127.0.0.1:{listening.getsockname()[1]}")
    loop, asked = asyncio.get_running_loop(), asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(asked), sys.stdin)
    async with served(board, state_dir, where, listening):
        print(json.dumps({"page": f"http://{where.bind}/"}), flush=True)
        telling = asyncio.create_task(_tell(simulated, board))
        while await asked.readline():
            used = {"cpu_s": time.process_time(), "wall_s": time.monotonic()}
            more_bytes = psutil.Process().memory_info().rss - without_bytes
            print(json.dumps({**used, "more_bytes": more_bytes, "step": board.step}), flush=True)
        telling.cancel()


async def _tell(simulated: Any, board: Any) -> None:
    """A step every STEP_S; one in ten is recorded, which is more often than a real coordinator does."""
    n = 0
    while True:
        n += 1
        for event in simulated.step(n):
            board.take(event, time.time())
        await asyncio.sleep(STEP_S)


def measure(workers: int, seconds: float) -> dict[str, float]:
    """What a page that looks on for so long costs and shows."""
    from tests.coordinator.dashboard.browser import WAIT_MS, browser

    with TemporaryDirectory() as directory:
        argv = [sys.executable, "-m", "tests.benchmarks.dashboard", "--serve", str(workers), directory]
        child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert child.stdin is not None
        assert child.stdout is not None

        def used() -> dict[str, float]:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write("\n")
            child.stdin.flush()
            found: dict[str, float] = json.loads(child.stdout.readline())
            return found

        try:
            address = json.loads(child.stdout.readline())["page"]
            before = used()
            with browser() as opened:
                # The page forbids text to be run as code, which is how a browser is asked to count frames.
                page = opened.new_context(bypass_csp=True).new_page()
                page.set_default_timeout(WAIT_MS)
                page.goto(address)
                page.locator("#timeline svg").wait_for()
                page.locator("#links table").wait_for()
                shown = used()
                frames = float(page.evaluate(FRAMES, seconds))
                after = used()
                elements = int(page.evaluate("document.querySelectorAll('*').length"))
        finally:
            child.terminate()
            child.wait(30)
    return {
        "workers": workers,
        "opening_cpu_s": shown["cpu_s"] - before["cpu_s"],
        "cores": (after["cpu_s"] - shown["cpu_s"]) / (after["wall_s"] - shown["wall_s"]),
        "more_bytes": after["more_bytes"],
        "frames_per_s": frames,
        "elements": elements,
        "steps": after["step"] - shown["step"],
    }


def benchmark(quick: bool) -> tuple[list[str], bool]:
    from tests.coordinator.dashboard.browser import why_no_browser

    if missing := why_no_browser():
        return [f"not measured: {missing}", json.dumps({"benchmark": "dashboard", "why_not": missing})], False
    lines = [
        f"One page looks on, a step every {STEP_S:g} s, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    ]
    lines.append("workers  cores   more MB  frames/s  elements  opening CPU s")
    rows, missed = [], []
    for workers in (200,) if quick else (200, 500):
        found = measure(workers, 10.0 if quick else 40.0)
        lines.append(
            f"{workers:>7}{found['cores']:7.3f}{found['more_bytes'] / 1e6:10.0f}{found['frames_per_s']:10.1f}"
            f"{found['elements']:10.0f}{found['opening_cpu_s']:15.2f}"
        )
        rows.append({name: round(value, 4) for name, value in found.items()})
        if workers == 200:
            goals = (
                ("cores", found["cores"] < GOAL_CORES, f"below {GOAL_CORES:g} of one"),
                ("memory", found["more_bytes"] < GOAL_BYTES, f"below {GOAL_BYTES / 1e6:.0f} MB"),
                ("frames", found["frames_per_s"] > GOAL_FRAMES, f"above {GOAL_FRAMES:g} a second"),
            )
            missed += [f"missed: {name}, required {goal}" for name, kept, goal in goals if not kept]
    lines += missed or ["all goals reached"]
    lines.append(json.dumps({"benchmark": "dashboard", "passed": not missed, "rows": rows}))
    return lines, bool(missed)


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["--serve"]:
        parser = argparse.ArgumentParser()
        parser.add_argument("--serve", type=int)
        parser.add_argument("directory", type=Path)
        options = parser.parse_args(arguments)
        serve(options.serve, options.directory)
        return 0
    return command.run(benchmark, __doc__, "200 workers alone, for 10 s", arguments)


if __name__ == "__main__":
    sys.exit(main())

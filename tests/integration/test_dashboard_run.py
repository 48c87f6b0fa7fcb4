"""A run with its page: looked at in a browser, followed by server-sent events, opened again after its end."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deploy.local import LocalCluster, LocalOptions
from deploy.processes import Child, command, free_port
from scheduler.exit_codes import ExitCode

pytest.importorskip("starlette")

from tests.coordinator.dashboard.browser import WAIT_MS, browser, requests_of, why_no_browser

TEXT = Path(__file__).parent.parent / "data" / "text.txt"
JOB = f"""
name: seen
model: {{family: gpt2, layers: 2, hidden: 32, heads: 4}}
data: {{files: ["{TEXT}"], held_out: 0.05, eval_samples: 8}}
sequence_length: 32
global_batch: 4
micro_batch: 2
steps: 100000
parallelism: {{stages: 1, replicas: 2}}
"""


def ask(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return json.load(answer)


@dataclass(frozen=True)
class Seen:
    """A run of two workers with its page."""

    cluster: LocalCluster
    page: str


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    directory = tmp_path_factory.mktemp("seen")
    job, at = directory / "job.yaml", f"127.0.0.1:{free_port()}"
    job.write_text(JOB)
    logs = ("--log-format", "json")
    options = LocalOptions(
        workers=2, state_dir=directory / "runs" / "a", dashboard=at,
        options_of={"worker": logs, "coordinator": (*logs, "--tensorboard", str(directory / "curves"))},
    )  # fmt: skip
    with LocalCluster(job, options) as cluster:
        yield Seen(cluster, f"http://{at}/")


def test_a_browser_sees_a_worker_lost_and_the_plan_that_follows(run: Seen) -> None:
    if missing := why_no_browser():
        pytest.skip(missing)
    from playwright.sync_api import expect

    with browser() as opened:
        page = opened.new_page()
        page.set_default_timeout(WAIT_MS)
        asked = requests_of(page)
        page.goto(run.page)
        phase = page.get_by_role("status")
        plans = page.get_by_role("region", name="Plans so far").locator("tbody tr")
        row, happened = page.locator("#worker-w1"), page.get_by_label("What happened, last first")
        expect(phase).to_have_text("running")
        page.get_by_role("img", name=re.compile("One step of 2 ranks")).wait_for()

        # The keyboard alone: past the links of the page's head to the worker's cell, and on to its row.
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="To the run")).to_be_focused()
        cell = page.get_by_role("link", name=re.compile("w1"))
        cell.focus()
        page.keyboard.press("Enter")
        expect(page).to_have_url(re.compile("#worker-w1$"))
        expect(row).to_be_in_viewport()
        expect(row).to_contain_text("stage 0, replica 1")

        run.cluster.workers["w1"].kill()
        lost = happened.locator("li.bad").filter(has_text="w1 is lost")
        expect(lost).to_be_visible(timeout=WAIT_MS)
        expect(row).to_contain_text("gone")
        expect(row).to_contain_text(lost.locator("span").inner_text())
        expect(plans.nth(1)).to_be_visible()  # and a third, if w0 tells of the cut link first
        expect(plans.first).to_contain_text("1 x 1")
        expect(plans.first).to_contain_text("w1 is gone")
        expect(page.locator("#shape")).to_contain_text("1 stage x 1 replica")
        expect(phase).to_have_text("running")

        for named in page.locator("[tabindex], a, summary, [role=img], [role=progressbar]").all():
            expect(named).to_have_accessible_name(re.compile(r"\S"))
    assert len(asked) > 8
    elsewhere = [url for url in asked if not url.startswith((run.page, "data:"))]
    assert elsewhere == []


def assert_every_line_says_what_it_is_of(logs: Path) -> None:
    """Run, worker and step, in the logs of the coordinator and of the worker that ended by itself."""
    for name in ("coordinator", "w0"):
        lines = [json.loads(x) for x in (logs / f"{name}.log").read_text().splitlines() if x.startswith("{")]
        assert all(line.keys() >= {"at", "level", "run", "worker", "step"} for line in lines)
        assert lines[-1]["run"].startswith("seen-")
        assert lines[-1]["step"] >= 6
    assert lines[-1]["worker"] == "w0"


def test_a_page_follows_the_run_to_its_end_and_shows_it_again(run: Seen) -> None:
    state = run.cluster.options.state_dir
    phases, drained = [], False
    with urllib.request.urlopen(f"{run.page}api/events", timeout=120) as events:
        while True:
            try:
                line = events.readline()
            except OSError:
                break
            if not line:
                break
            if line.startswith(b"data: "):
                told = json.loads(line[6:])
                phases.append(told["phase"])
                if not drained and told["step"] >= 6 and told["recorded_step"]:
                    drained = True
                    run.cluster.drain()
    assert run.cluster.wait() == ExitCode.OK
    assert "running" in phases, "it was followed, not only told the end"
    assert len(list((state.parent.parent / "curves").rglob("events.*"))) == 1
    assert_every_line_says_what_it_is_of(run.cluster.logs)
    listing = command("coordinator", "runs", str(state.parent), "--json")
    listed = subprocess.run(listing, capture_output=True, text=True, check=True)
    ended = json.loads(listed.stdout)
    assert phases[-1] == ended["phase"]
    show = command("coordinator", "dashboard", "--at", "127.0.0.1:0", "--state-dir", str(state), "--json")
    again = Child("again", show, run.cluster.logs / "page.log")
    try:
        page = again.wait_for("dashboard", 120.0)["address"]
        shown, points = ask(f"{page}api/run"), ask(f"{page}api/steps")
        assert all(shown[name] == ended[name] for name in ("phase", "step", "loss"))
        assert points["series"]["step"][0] == 1
        assert points["series"]["step"][-1] == ended["step"]
        assert ask(f"{page}api/timeline")["measured"]
        worker = next(w for w in shown["workers"] if w["name"] == "w0")
        assert 0 < worker["busy"] <= 1
        assert worker["memory_used_bytes"] > 10**8, "a process with torch in it"
    finally:
        again.stop()


def test_a_page_that_others_can_reach_wants_a_certificate(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(JOB)
    start = command("coordinator", "start", str(job), "--bind", "127.0.0.1:0", "--dashboard", "0.0.0.0:0")
    done = subprocess.run(
        [*start, "--state-dir", str(tmp_path / "s")], capture_output=True, text=True, check=False
    )
    assert done.returncode == ExitCode.INSECURE_BIND
    assert "coordinator certs" in done.stderr

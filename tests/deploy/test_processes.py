"""Children of the composition root: heard, ended, and explained when they fail."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.local import forget
from deploy.processes import Child, ProcessFailed

Start = Callable[[str], Child]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "child.log"


@pytest.fixture
def start(log: Path) -> Iterator[Start]:
    children: list[Child] = []

    def run(code: str) -> Child:
        children.append(Child("child", [sys.executable, "-c", code], log))
        return children[-1]

    yield run
    for child in children:
        child.stop(grace_s=1)


def test_events_are_read_and_everything_else_is_kept_in_the_log(start: Start, log: Path) -> None:
    child = start(
        'import sys; print(\'hello\'); print(\'{"event": "listening", "port": 7}\'); '
        "print('a warning', file=sys.stderr); print('[1]'); print('{\"event\": \"done\"}')"
    )
    assert child.wait_for("listening", 20)["port"] == 7
    assert [e["event"] for e in child.events()] == ["done"]
    assert child.stop() == 0
    text = log.read_text()
    assert "hello" in text
    assert "a warning" in text


def test_a_child_that_dies_early_is_explained_with_its_own_words(start: Start) -> None:
    child = start("import sys; print('no such job', file=sys.stderr); sys.exit(3)")
    with pytest.raises(ProcessFailed, match=r"exit code 3.*\n.*no such job") as failed:
        child.wait_for("listening", 20)
    assert failed.value.code == 3


def test_a_silent_child_is_not_waited_for_for_ever(start: Start) -> None:
    child = start("import time; time.sleep(60)")
    with pytest.raises(ProcessFailed, match="said no 'listening' within"):
        child.wait_for("listening", 0.2)


def test_a_child_that_ignores_sigterm_is_killed(start: Start) -> None:
    child = start(
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        'print(\'{"event": "up"}\', flush=True); time.sleep(60)'
    )
    child.wait_for("up", 20)
    assert child.stop(grace_s=0.2) == -signal.SIGKILL
    assert not child.running


def test_forget_refuses_a_folder_that_holds_no_run(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ProcessFailed, match="holds no run"):
        forget(tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_forget_removes_an_earlier_run(tmp_path: Path) -> None:
    state = tmp_path / "run"
    (state / "logs").mkdir(parents=True)
    forget(state)
    assert not state.exists()
    forget(state)  # nothing there is nothing to do


def test_a_child_that_said_why_it_ends_is_quoted_and_not_its_log(tmp_path: Path) -> None:
    told = '{"event": "error", "code": 20, "reason": "s: found a run"}'
    words = [sys.executable, "-c", f"import sys; print('{{}}'); print('{told}'); sys.exit(20)"]
    child = Child("c", words, tmp_path / "c.log")
    with pytest.raises(ProcessFailed) as failed:
        child.wait_for("listening", 20)
    assert (str(failed.value), failed.value.code) == ("c: s: found a run", 20)
    child.stop()

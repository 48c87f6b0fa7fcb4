"""Showing a run to a person: a bar when the output is a terminal, lines when it is not, JSON when asked.

All three take the driver's events as they are. Decides nothing.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from protos.log_lines import LogLines, finite

from .tokens import until

LINES_OF_STEPS = 40
"""Roughly how many step lines a run prints where there is no bar."""


class Show(Protocol):
    """Takes events; is entered and left around the run."""

    def __call__(self, event: dict[str, Any]) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class JsonLines:
    """One JSON object a line on standard output, at once."""

    def __call__(self, event: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(finite(event)) + "\n")
        sys.stdout.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class JsonLog(JsonLines):
    """The same with time, level, run, worker and step in every line."""

    def __init__(self, lines: LogLines) -> None:
        self._lines = lines

    def __call__(self, event: dict[str, Any]) -> None:
        sys.stdout.write(self._lines.of_event(event) + "\n")
        sys.stdout.flush()


def while_heard(say: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    """`say` as long as somebody reads standard output: a run does not end because its listener has. Once the
    pipe is closed the output goes nowhere, also what the interpreter still flushes at its end."""

    def carefully(event: dict[str, Any]) -> None:
        try:
            say(event)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    return carefully


class Bar:
    """A progress bar over the steps, with what changes behind it, and a line for everything else."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=False,
        )
        self._task: TaskID | None = None
        self._sent_bytes = 0
        self._eval = ""

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._progress.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] == "step":
            self._step(event)
            return
        if event["event"] == "eval":
            self._eval = f" eval {event['eval_loss']:.4f}"
        line = line_of(event)
        if line:
            self._console.print(line, markup=False, highlight=False)

    def _step(self, event: dict[str, Any]) -> None:
        self._sent_bytes += event["sent_bytes"]
        numbers = step_numbers(event, self._eval, self._sent_bytes)
        if self._console.is_terminal:
            if self._task is None:
                self._task = self._progress.add_task("step", total=event["steps"], numbers="")
            self._progress.update(self._task, completed=event["step"], numbers=numbers)
            return
        every = max(1, event["steps"] // LINES_OF_STEPS)
        if event["step"] % every == 0 or event["step"] == event["steps"]:
            self._console.print(
                f"step {event['step']}/{event['steps']} {numbers}", markup=False, highlight=False
            )


def step_numbers(event: dict[str, Any], evaluated: str, sent_bytes: int) -> str:
    """`loss 3.2100 eval 3.3000 | 812 tokens/s | step 0.42 s, predicted 0.40 | 12.3 MB sent`."""
    return (
        f"loss {event['loss']:.4f}{evaluated} | {event['tokens_per_s']:,.0f} tokens/s | "
        f"step {event['step_s']:.3g} s, predicted {event['predicted_step_s']:.3g} | "
        f"{human_bytes(sent_bytes)} sent"
    )


def human_bytes(n: float) -> str:
    """`12.3 MB`, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


def line_of(event: dict[str, Any]) -> str:
    """What a person is told of an event; '' for nothing."""
    match event["event"]:
        case "listening":
            return (
                f"run {event['run']}: listening on {event['address']}, state in {event['state_dir']}\n"
                f"to join, on each worker's machine:\n  {event['join']}"
            )
        case "dashboard" if "until_s" in event:
            end = f"until {until(event['until_s'])}; `coordinator tokens revoke {event['token_id']}` ends it"
            return f"the page of the run, for who has its token ({end}):\n  {event['address']}"
        case "dashboard":
            return f"the page of the run: {event['address']}"
        case "note" | "disagreement" | "warning" | "standby" | "superseded" | "gave_way":
            return f"{event['event'].replace('_', ' ')}: {event['reason']}"
        case "joined":
            where = f" ({event['region']})" if event["region"] else ""
            return f"{event['name']}{where} joined: {event['members']} workers of {event['needed']} needed"
        case "left":
            return f"left ({event['why']}): {event['reason']}"
        case "refused":
            return f"refused: {event['name']}: {event['reason']}"
        case "phase":
            return f"{event['phase']}: {event['reason']}"
        case "plan":
            return "\n".join(
                [
                    f"plan {event['version']}: {len(event['partition'])} stages x {len(event['placement'])} "
                    f"replicas, predicted step {event['predicted_step_s']:.3g} s",
                    *(f"  {r}" for r in event["reasons"]),
                ]
            )
        case "recovery":
            return f"goes on after step {event['step']}: {event['reason']}"
        case "following":
            return f"following after step {event['step']}: {event['reason']}"
        case "unfollowed":
            return f"not followed any more: {event['reason']}"
        case "pause":
            return f"stood still for {event['seconds']:.3g} s, goes on after step {event['step']}"
        case "description":
            return str(event["text"])
        case "eval":
            return f"eval loss {event['eval_loss']:.4f} after step {event['step']}"
        case "checkpoint":
            return f"checkpoint: {event['path']} ({human_bytes(event['n_bytes'])})"
        case "generated":
            return f"{event['name']}: {event['text']}"
        case "finished" | "failed":
            return _ending(event)
        case _:
            return ""


def _ending(event: dict[str, Any]) -> str:
    lines = [f"{event['event']}: {event['reason']}"]
    if event.get("steps"):
        loss = "" if event["loss"] is None else f", loss {event['loss']:.4f}"
        evaluated = "" if event["eval_loss"] is None else f", eval loss {event['eval_loss']:.4f}"
        lines.append(f"  step {event['step']} of {event['steps']}{loss}{evaluated}{_rate(event)}")
    if event.get("checkpoint"):
        lines.append(f"  checkpoint: {event['checkpoint']}")
    return "\n".join(lines)


def _rate(event: dict[str, Any]) -> str:
    """What this process did, if it did anything."""
    if event["seconds"] <= 0:
        return ""
    tokens, seconds = event["tokens"], event["seconds"]
    return f", {tokens:,} tokens in {seconds:.0f} s ({tokens / seconds:,.0f}/s)"

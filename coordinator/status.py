"""`coordinator status`: what a coordinator says of itself, as lines, and `--watch`, which draws it again.

A picture of a reply is pure; who is asked, the terminal and the pause between are given. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from protos import orchestrator_pb2 as pb
from scheduler.departures import departure_from_wire

from .progress import human_bytes
from .records import OVER

MOST_WORKERS = 40
"""Beyond so many, workers are counted by region: a terminal has no room for all."""
BAR_COLUMNS = 40


def lines_of(reply: pb.StatusReply) -> Iterator[str]:
    """The reply in lines."""
    yield f"run {reply.run}: {reply.phase} ({reply.reason})"
    yield _numbers(reply)
    if reply.outlook:
        yield f"last look for a faster plan: {reply.outlook}"
    if reply.checked:
        yield f"last spot check: {reply.checked}"
    for w in reply.workers:
        memory = f", {human_bytes(w.device.memory_bytes)}" if w.device.memory_bytes else ""
        yield f"  {w.name}: {w.state}, {_holds(w)}{memory}: {_heard(w)}"


def _numbers(reply: pb.StatusReply) -> str:
    """How far it is, how well and how fast; what there is no number of yet is left out."""
    parts = [f"step {reply.step} of {reply.steps}"]
    if reply.HasField("loss"):
        parts.append(f"loss {reply.loss:.4f}")
    elif reply.step == 0:
        parts.append("none is done yet")
    if reply.HasField("eval_loss"):
        parts.append(f"eval loss {reply.eval_loss:.4f}")
    if reply.HasField("tokens_per_s"):
        parts.append(f"{reply.tokens_per_s:,.0f} tokens/s")
    predicted = f"predicted {reply.predicted_step_s:.3g} s" if reply.HasField("predicted_step_s") else ""
    if reply.HasField("measured_step_s"):
        parts.append(f"step {reply.measured_step_s:.3g} s" + (f" ({predicted})" if predicted else ""))
    elif predicted:
        parts.append(f"step {predicted}")
    return ", ".join(parts)


def _holds(w: pb.WorkerStatus) -> str:
    return f"rank {w.rank}, layers {w.first_layer}..{w.last_layer}" if w.rank >= 0 else "no layers"


def _heard(w: pb.WorkerStatus) -> str:
    if not w.reason:
        relayed = f"; relayed to {', '.join(w.relayed_to)}" if w.relayed_to else ""
        return f"heard of {w.last_seen_s:.1f} s ago{relayed}"
    return f"{departure_from_wire(w.departure).words}: {w.reason}" if w.departure else str(w.reason)


def picture(reply: pb.StatusReply) -> RenderableType:
    """The reply for a terminal: what is going on, how far it is, who works."""
    bar = ProgressBar(total=max(1, reply.steps), completed=reply.step, width=BAR_COLUMNS)
    head = Text.assemble((reply.run, "bold"), "  ", (reply.phase, "cyan"), f"  {reply.reason}")
    workers = _by_region(reply) if len(reply.workers) > MOST_WORKERS else _by_name(reply)
    return Group(head, bar, Text(_numbers(reply)), Text(_plan(reply)), workers)


def _plan(reply: pb.StatusReply) -> str:
    if not reply.HasField("plan"):
        return "no plan yet"
    stages, replicas = len(reply.plan.partition), len(reply.plan.placement)
    outlook = f"; last look for a faster one: {reply.outlook}" if reply.outlook else ""
    checked = f"; last spot check: {reply.checked}" if reply.checked else ""
    return f"plan {reply.plan.version}: {stages} stages x {replicas} replicas{outlook}{checked}"


def _by_name(reply: pb.StatusReply) -> Table:
    table = Table("worker", "region", "state", "holds", "memory", "")
    for w in reply.workers:
        style = "red" if w.state == "gone" else None
        memory = human_bytes(w.device.memory_bytes) if w.device.memory_bytes else ""
        table.add_row(w.name, w.device.region, w.state, _holds(w), memory, _heard(w), style=style)
    return table


def _by_region(reply: pb.StatusReply) -> Table:
    counts: dict[str, dict[str, int]] = {}
    for w in reply.workers:
        there = counts.setdefault(w.device.region or "–", {"work": 0, "spare": 0, "gone": 0})
        there["gone" if w.state == "gone" else "work" if w.rank >= 0 else "spare"] += 1
    table = Table("region", "work", "spare", "gone")
    for region, n in sorted(counts.items()):
        table.add_row(region, *(str(n[x]) for x in ("work", "spare", "gone")))
    return table


def watch(ask: Callable[[], pb.StatusReply], console: Console, pause: Callable[[], None]) -> pb.StatusReply:
    """Ask and draw, pause, and again, until the run is over; returns the last reply. On what is no terminal
    every picture follows the last. What `ask` raises ends it."""
    reply = ask()
    if not console.is_terminal:
        while True:
            console.print(picture(reply))
            if reply.phase in OVER:
                return reply
            pause()
            reply = ask()
    with Live(picture(reply), console=console, auto_refresh=False, screen=True) as live:
        while reply.phase not in OVER:
            pause()
            reply = ask()
            live.update(picture(reply), refresh=True)
    console.print(picture(reply))
    return reply

"""A run of one worker that another joins, over a slow link, with real processes: the coordinator here, the
workers and what shapes their link by their commands.

For `tests/integration/test_joined_run.py` and `tests/benchmarks/joining.py`. The plans are given: one stage
for who is there first, and with the other two, of which it gets the last. That a move pays is taken for
granted, so that nothing hangs on how busy this machine is, and nothing is given up for it; how the layers
travel is the coordinator's own decision.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from hashlib import sha256
from itertools import permutations
from pathlib import Path
from typing import Any
from unittest.mock import patch

from coordinator import run
from coordinator.commands import MakePlan, Reconsider
from coordinator.planning import Planner, Planning, given
from coordinator.records import Options
from coordinator.resume import open_run, token
from coordinator.run import RunOptions
from deploy.processes import Child, command, free_port
from scheduler.exit_codes import ExitCode
from scheduler.job import JobSpec, parse_job
from scheduler.moving import MovingCost
from scheduler.plan import Plan
from scheduler.replan import Move, Patience, Stay
from scheduler.trace import About, Node, Trace, steady
from scheduler.trace_write import format_trace

TEXT = Path(__file__).parent / "data" / "text.txt"
FIRST, LATE = "first", "late"
START_S = 120.0
MORE_STEPS = 3
MOST_STEPS = 150
"""A run that has done so many has waited in vain, and ends."""
JOB = """
name: joined
model: {{family: llama, layers: {layers}, hidden: 128, heads: 4, tied: false}}
data: {{files: ["{text}"], held_out: 0.05, eval_samples: 0}}
sequence_length: 64
global_batch: {global_batch}
micro_batch: 4
steps: {steps}
optimizer: {{lr: 1e-3, warmup_steps: 4, clip_norm: 0.5}}
checkpoint: {{every: 0, keep: 1}}
parallelism: auto
"""

Event = dict[str, Any]


def job_of(layers: int, global_batch: int, steps: int) -> JobSpec:
    text = JOB.format(layers=layers, global_batch=global_batch, steps=steps, text=TEXT)
    return parse_job(text, "joined.yaml")


def planner(job: JobSpec, request: MakePlan) -> Planning:
    """The plan for who is there."""
    names = [d.name for d in request.devices]
    cut = job.n_layers * 5 // 8
    both = LATE in names
    plan = Plan(
        version=1,
        placement=((FIRST, LATE),) if both else ((FIRST,),),
        partition=((0, cut), (cut, job.n_layers)) if both else ((0, job.n_layers),),
        micro_batches=(job.global_batch // 4,),
        schedule="1f1b",
        micro_batch=4,
    )
    return given(plan)(job, request)


def look(job: JobSpec, asked: Reconsider, planner: Planner, patience: Patience) -> Stay | Move:  # noqa: ARG001
    """To the plan for who is there."""
    plan = planner(job, asked.request).plan
    if set(plan.devices) == set(asked.running.devices):
        return Stay(0, "Nobody has joined.")
    return Move(plan, MovingCost(0, 0.0, 0, ()), 1.0, asked.step, "The other one is there.")


class Joined:
    """The processes of one run."""

    def __init__(self, directory: Path, bandwidth_Bps: float, rtt_s: float, exit_: ExitStack) -> None:
        self._directory, self._exit = directory, exit_
        self._token_file, self._coordinator = Path(), ""
        self.addresses = {name: f"127.0.0.1:{free_port()}" for name in (FIRST, LATE)}
        links = dict.fromkeys(permutations(self.addresses, 2), steady(rtt_s, bandwidth_Bps))
        about = About(0.5, "round trips", "of all flows", source="made for this", licence="MIT")
        trace = Trace("pair", {n: Node(n) for n in self.addresses}, links, about)
        for ending, lines in format_trace(trace).items():
            (directory / f"pair{ending}").write_text("".join(lines))
        nodes = [x for n, at in self.addresses.items() for x in ("--node", f"{n}={n}={at}")]
        files = ("--trace", str(directory / "pair.csv"), "--map-file", str(directory / "routes.json"))
        self._child("links", command("sim", "shape", *files, *nodes, "--json")).wait_for("listening", START_S)

    def _child(self, name: str, argv: list[str]) -> Child:
        child = Child(name, argv, self._directory / "logs" / f"{name}.log")
        self._exit.callback(child.stop)
        return child

    def start(self, name: str, address: str, token_file: Path, more: Sequence[str] = ()) -> Child:
        routes = json.loads((self._directory / "routes.json").read_text())
        own = self._directory / f"routes-{name}.json"
        own.write_text(json.dumps(routes[name]))
        argv = command(
            "worker", "join", address, "--token-file", str(token_file), "--name", name, "--device", "cpu",
            "--bind", self.addresses[name], "--peer-map", str(own), "--data-dir", str(self._directory),
            "--threads", "1", "--streams", "2", "--json", "--state-dir", str(self._directory / "workers"),
            *more,
        )  # fmt: skip
        return self._child(name, argv)


@contextmanager
def _processes(directory: Path, bandwidth_Bps: float, rtt_s: float) -> Iterator[Joined]:
    directory.mkdir(parents=True)
    with ExitStack() as exit_:
        yield Joined(directory, bandwidth_Bps, rtt_s, exit_)


def run_of(
    directory: Path,
    job: JobSpec,
    joins: bool,
    steps: int = 0,
    kill_at: str = "",
    ends_after: str = "",
    rest_s: float = 1.0,
    bandwidth_Bps: float = 3e6,
    rtt_s: float = 0.02,
) -> list[Event]:
    """All events of the run in a new `directory`, which does `steps` steps (0: the job's).

    `joins`: the other is started once the first has a plan. The first then rests for `rest_s` in every step,
    so that a step takes long, and a machine little; its connections do not, so that links are measured as
    they are. `kill_at`: the event at which the other is killed. `ends_after`: MORE_STEPS steps after that
    event the run is told to end.
    """
    events: list[Event] = []

    async def drive(processes: Joined) -> ExitCode:
        opened = open_run(directory / "state", job, resume=False, resume_step=None, now_s=1.0)
        secret = token(directory / "state", None)
        resting = range(2, MOST_STEPS) if joins else ()
        rests_of_first = [x for s in resting for x in ("--fail-at", f"*:*:forward@{s}:late={rest_s}")]
        address, late, left = "", list[Child](), -1

        def say(event: Event) -> None:
            nonlocal address, left
            events.append(event)
            match event["event"]:
                case "listening":
                    address = str(event["address"])
                    processes.start(FIRST, address, secret[1], rests_of_first)
                case "plan" if joins and not late:
                    late.append(processes.start(LATE, address, secret[1]))
                case "step":
                    left -= 1
                    if left == 0 or event["step"] == MOST_STEPS:
                        os.kill(os.getpid(), signal.SIGINT)
                case _:
                    pass
            if event["event"] == kill_at:
                late[0].kill()
            if event["event"] == ends_after and left < 0:
                left = MORE_STEPS

        options = RunOptions("127.0.0.1:0", reconsider_s=0.5)
        try:
            return await run.run(job, opened, options, secret, say, planner)
        finally:
            opened.close()

    of_job = run.options_of

    def in_all(*given: Any) -> Options:
        found = of_job(*given)
        return replace(found, steps=steps or found.steps)

    with (
        _processes(directory, bandwidth_Bps, rtt_s) as processes,
        patch("coordinator.driver.look", look),
        patch("coordinator.run.options_of", in_all),
        patch("coordinator.following.transfer_deadline_s", lambda _: 3600.0),
        patch("coordinator.following.LEAST_MEETING_S", 3600.0),
    ):
        code = asyncio.run(drive(processes))
    assert code is ExitCode.OK, events[-3:]
    return events


def losses(events: list[Event]) -> list[float]:
    found = [e for e in events if e["event"] == "step"]
    assert [e["step"] for e in found] == list(range(1, len(found) + 1))
    return [e["loss"] for e in found]


def checkpoint(directory: Path, step: int) -> dict[str, str]:
    """File -> hash: weights and optimizer state of every layer."""
    last = directory / "state" / "checkpoints" / f"step-{step:06d}"
    return {f.name: sha256(f.read_bytes()).hexdigest() for f in sorted(last.glob("*.safetensors"))}


def worker_events(directory: Path, name: str) -> list[Event]:
    """What a worker said, as its log has it."""
    lines = (directory / "logs" / f"{name}.log").read_text(errors="replace").splitlines()
    return [json.loads(x) for x in lines if x.startswith("{")]


def first(events: list[Event], kind: str) -> Event:
    return next(e for e in events if e["event"] == kind)

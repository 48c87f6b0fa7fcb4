"""What compression brings a whole step: the same job over links of 1000, 300, 100 and 30 Mbit/s.

    python -m tests.benchmarks.end_to_end [--quick] [--out FILE]

Every worker is a process, every link a relay that delays and rates it (`sim.emulate`). A pipeline of two
stages is judged by its activations and their gradients, two replicas of it, each with as many micro-batches
as the one, with the weights' gradients too. Samples come every step, so AC-SGD's first visits are in the
step that is not counted. Stages warm up one micro-batch deeper than they must, else each pays every
transfer's latency, compressed or not, and a codec can only take away the bytes.

Figures are tokens a second as ratios to fp32 over the same link, beside what the engine predicts from the
computation measured without links, and beside the ratio of the bytes in the fuller direction, which no step
can exceed. Goals, of the papers' for their slowest links: AC-SGD at least 4.3 x for activations, 4.9 x with
gradients. The last line is JSON; the exit code is 1 if one is missed.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compression.spec import codec_spec
from scheduler.codec_speed import speed_of
from scheduler.cost import flat_wire_bytes_of, wire_bytes_of
from scheduler.engine import Durations, TopologyNetwork, replay
from scheduler.job import DataSpec, JobSpec, ModelSpec, OptimizerSpec
from scheduler.plan import Plan
from scheduler.plan_codecs import same_everywhere
from scheduler.profile import ModelProfile
from scheduler.topology import Device, Topology
from scheduler.trace import About, Node, Trace, steady
from sim.emulate import LinkShaper, ShapedNode, ShapeOptions
from tests.benchmarks.command import run as run_command
from tests.benchmarks.voting import ByRankZero
from worker.addresses import PeerAddress
from worker.model import build_layers, initialize
from worker.optimizer import StageOptimizer
from worker.stage import Stage
from worker.step import LinkCodecs, StepContext, run_step
from worker.zmq_transport import DataEndpoint

ACTIVATION_GOAL, GRADIENT_GOAL = 4.3, 4.9
RTT_S = 0.02
MBPS = (1000, 300, 100, 30)
BLOCKS, HIDDEN, LENGTH, MICRO_BATCH, VOCAB = 1, 128, 128, 16, 33
BOUNDARY_BYTES = MICRO_BATCH * LENGTH * HIDDEN * 4

BACKWARD8 = "kbit:rounding=stochastic"
CODECS: dict[str, tuple[str, str, str]] = {
    "fp32": ("", "", ""),
    "fp16": ("fp16", "fp16", ""),
    "direct 4/8": ("kbit:bits=4", BACKWARD8, ""),
    "tile 4/8": ("tile", BACKWARD8, ""),
    "AC-SGD fw2/bw4": ("acsgd:bits=2", "kbit:bits=4,rounding=stochastic", ""),
    "AC-SGD fw4/bw8": ("acsgd:bits=4", BACKWARD8, ""),
}
GRADIENTS = {
    "fp32": ("", "", ""),
    "AC-SGD fw4/bw8": ("acsgd:bits=4", BACKWARD8, ""),
    "tile 4/8 + gradients 4": ("tile", BACKWARD8, "feedback"),
    "AC-SGD fw2/bw4 + gradients 4": ("acsgd:bits=2", "kbit:bits=4,rounding=stochastic", "feedback"),
    "AC-SGD fw4/bw8 + gradients 4": ("acsgd:bits=4", BACKWARD8, "feedback"),
    "AC-SGD fw4/bw8 + top-k 1 %": ("acsgd:bits=4", BACKWARD8, "topk"),
}


def make_job(micro_batches: int) -> JobSpec:
    """An embedding, one narrow block and a head: little computation beside what crosses the boundary."""
    model = ModelSpec(
        family="gpt2",
        layers=BLOCKS,
        hidden=HIDDEN,
        heads=2,
        kv_heads=2,
        ffn=HIDDEN // 4,
        vocab=VOCAB,
        max_positions=LENGTH,
        tied=False,
    )
    return JobSpec(
        name="end-to-end",
        model=model,
        data=DataSpec(files=("none",)),
        sequence_length=LENGTH,
        global_batch=micro_batches * MICRO_BATCH,
        micro_batch=MICRO_BATCH,
        steps=1_000_000,
        optimizer=OptimizerSpec(lr=1e-4),
    )


def make_plan(job: JobSpec, version: int, replicas: int, codecs: tuple[str, str, str]) -> Plan:
    return Plan(
        version=version,
        placement=tuple((f"{r}.0", f"{r}.1") for r in range(replicas)),
        partition=((0, 1), (1, 3)),
        micro_batches=(job.micro_batches // replicas,) * replicas,
        schedule="1f1b",
        warmup_extra=1,
        micro_batch=MICRO_BATCH,
        codecs=same_everywhere(2, replicas, *codecs),
    )


# ---- in a worker's process


def serve(pipe: Connection) -> None:
    """Obey (plan, rank, addresses, job, steps) until told to stop: seconds of each step, and its links."""
    torch.set_num_threads(1)
    endpoint = DataEndpoint("127.0.0.1:0", streams=1)
    pipe.send(endpoint.address)
    while (order := pipe.recv()) is not None:
        job, plan, rank, addresses, n_steps = order
        peers = {r: PeerAddress(a) for r, a in addresses.items()}
        transport = endpoint.open(run="e2e", plan_version=plan.version, rank=rank, peers=peers)
        codecs, agreement = LinkCodecs(plan, rank), ByRankZero(plan, rank, transport)
        context = StepContext(plan, rank, job, transport, codecs, agreement, receive_timeout_s=300.0)
        start, stop = plan.partition[context.stage]
        layers = build_layers(job.shape, start, stop)
        for i, layer in enumerate(layers):
            initialize(layer, 0, start + i)
        stage = Stage(layers, context.stage == 0, context.stage == plan.n_stages - 1)
        optimizer = StageOptimizer(layers, job.optimizer)
        first = plan.first_micro_batch(context.replica)
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(VOCAB, (job.global_batch, LENGTH + 1), generator=generator)

        def batch(mb: int, tokens: Tensor = tokens, first: int = first) -> Tensor:
            return tokens[(first + mb) * MICRO_BATCH :][:MICRO_BATCH]

        def samples(mb: int, first: int = first) -> tuple[int, ...]:
            return tuple(range((first + mb) * MICRO_BATCH, (first + mb + 1) * MICRO_BATCH))

        pipe.send("ready")
        found = []
        for step in range(n_steps):
            start_s = time.monotonic()
            done = run_step(context, stage, optimizer, step, batch, time.monotonic, samples)
            compute = {k: [s.duration_s for s in done.spans if s.kind == k] for k in COMPUTED}
            found.append((start_s, time.monotonic(), compute))
        pipe.send(found)
        transport.close()
    endpoint.close()


COMPUTED = ("forward", "backward", "optimizer")


def relay(pipe: Connection, addresses: Sequence[str], mbps: float) -> None:
    """Shape the links between all workers until told to stop."""
    names = [str(i) for i in range(len(addresses))]
    link = steady(RTT_S, mbps * 1e6 / 8)
    links = dict.fromkeys(permutations(names, 2), link)
    trace = Trace("even", {n: Node(n) for n in names}, links, About(0.5))

    async def shape() -> None:
        ends = [ShapedNode(n, n, a) for n, a in zip(names, addresses, strict=True)]
        async with LinkShaper(trace, ends, ShapeOptions()) as shaper:
            pipe.send({src: dict(to) for src, to in shaper.routes.items()})
            await asyncio.to_thread(pipe.recv)

    asyncio.run(shape())


# ---- in the parent


@dataclass
class Workers:
    """Four worker processes and the last plan's version."""

    pipes: list[Connection]
    addresses: list[str]
    version: int = 0

    def run(
        self, job: JobSpec, plan: Plan, routes: dict[str, dict[str, str]] | None, n_steps: int
    ) -> tuple[float, dict[str, float]]:
        """(seconds of the best step but the first, seconds of each kind of computation by rank)."""
        pipes = self.pipes[: plan.n_ranks]
        for rank, pipe in enumerate(pipes):
            to = {
                r: routes[str(rank)][str(r)] if routes else self.addresses[r]
                for r in range(plan.n_ranks)
                if r != rank
            }
            pipe.send((job, plan, rank, to, n_steps))
        for pipe in pipes:
            pipe.recv()
        ran = [pipe.recv() for pipe in pipes]
        step_s = min(max(r[i][1] for r in ran) - max(r[i - 1][1] for r in ran) for i in range(1, n_steps))
        computed = {
            f"{kind} {rank}": min(sum(r[i][2][kind]) / max(1, len(r[i][2][kind])) for i in range(1, n_steps))
            for rank, r in enumerate(ran)
            for kind in COMPUTED
        }
        return step_s, computed

    def plan(self, job: JobSpec, replicas: int, codecs: tuple[str, str, str]) -> Plan:
        self.version += 1
        return make_plan(job, self.version, replicas, codecs)


def even_links(plan: Plan, mbps: float) -> TopologyNetwork:
    """All links alike, for the engine."""
    n = plan.n_ranks
    devices = tuple(Device(plan.device(r)) for r in range(n))
    latency_s, bandwidth_Bps = np.full((n, n), RTT_S / 2), np.full((n, n), mbps * 1e6 / 8)
    np.fill_diagonal(latency_s, 0.0)
    return TopologyNetwork(Topology(devices, latency_s, bandwidth_Bps))


def crossing_bytes(plan: Plan) -> tuple[int, int]:
    """Of a micro-batch: its activation on the wire, and the gradient that comes back."""
    model = ModelProfile((), MICRO_BATCH, LENGTH)
    activation, gradient = (
        wire_bytes_of(codec_spec(plan.codecs.of_boundary(kind, 0, 0)), model)(BOUNDARY_BYTES)
        for kind in ("activation", "gradient")
    )
    return activation, gradient


def codec_s(name: str, values: float) -> tuple[float, float]:
    """Encoding and decoding so many."""
    speed = speed_of(name)
    return values * speed.encode_s, values * speed.decode_s


def predicted_s(plan: Plan, computed: dict[str, float], parameters: Sequence[int], mbps: float) -> float:
    """The engine's step: computation as measured without links, bytes and seconds of codecs as their specs
    and their typical speeds have them."""
    crossing = crossing_bytes(plan)
    values, stages = BOUNDARY_BYTES / 4, [plan.stage_of(r) for r in range(plan.n_ranks)]
    there, back = (plan.codecs.of_boundary(kind, 0, 0) for kind in ("activation", "gradient"))
    reduce = [flat_wire_bytes_of(codec_spec(plan.codecs.of_stage(s)))(n) for s, n in enumerate(parameters)]
    ranks = range(plan.n_ranks)
    durations = Durations(
        forward_s=tuple(computed[f"forward {r}"] for r in ranks),
        backward_s=tuple(computed[f"backward {r}"] for r in ranks),
        optimizer_s=tuple(computed[f"optimizer {r}"] for r in ranks),
        activation_bytes=tuple(crossing[0] * (plan.stage_of(r) == 0) for r in ranks),
        gradient_bytes=tuple(crossing[1] * (plan.stage_of(r) == 1) for r in ranks),
        reduce_bytes=tuple(reduce),
        activation_codec_s=tuple(codec_s(there, values * (s == 0)) for s in stages),
        gradient_codec_s=tuple(codec_s(back, values * (s == 1)) for s in stages),
        reduce_codec_s=tuple(codec_s(plan.codecs.of_stage(s), parameters[s] / 4) for s in stages),
    )
    return replay(plan, durations, even_links(plan, mbps)).duration_s


def benchmark(quick: bool) -> tuple[list[str], bool]:
    spawn = multiprocessing.get_context("spawn")
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    micro_batches, n_steps = (8, 3) if quick else (16, 4)
    rates = (300, 30) if quick else MBPS
    pipes, processes = [], []
    for _ in range(4):
        near, far = spawn.Pipe()
        processes.append(spawn.Process(target=serve, args=(far,), daemon=True))
        processes[-1].start()
        pipes.append(near)
    workers = Workers(pipes, [pipe.recv() for pipe in pipes])
    job = make_job(micro_batches)
    layers = build_layers(job.shape, 0, job.n_layers)
    sizes = [4 * sum(p.numel() for p in layer.parameters()) for layer in layers]
    parameters = [sizes[0], sum(sizes[1:])]
    rows: list[dict[str, Any]] = []
    try:
        for replicas, codecs in ((1, CODECS), (2, GRADIENTS)):
            job = make_job(micro_batches * replicas)
            bare = workers.plan(job, replicas, ("", "", ""))
            _, computed = workers.run(job, bare, None, n_steps)
            for mbps in rates:
                near, far = spawn.Pipe()
                shaper = spawn.Process(target=relay, args=(far, workers.addresses, mbps), daemon=True)
                shaper.start()
                routes = near.recv()
                for name, used in codecs.items():
                    plan = workers.plan(job, replicas, used)
                    step_s, _ = workers.run(job, plan, routes, n_steps)
                    predicted = predicted_s(plan, computed, parameters, mbps)
                    rows.append(
                        {
                            "replicas": replicas,
                            "mbps": mbps,
                            "codec": name,
                            "step_s": step_s,
                            "predicted": predicted,
                            "of_bytes": BOUNDARY_BYTES / max(crossing_bytes(plan)),
                        }
                    )
                near.send("stop")
                shaper.join(30)
    finally:
        for pipe in pipes:
            pipe.send(None)
        for process in processes:
            process.join(30)
    return report(micro_batches, rows)


def report(micro_batches: int, rows: list[dict[str, Any]]) -> tuple[list[str], bool]:
    lines = [
        f"{micro_batches} micro-batches of {MICRO_BATCH} x {LENGTH} tokens a replica, boundary"
        f" {BOUNDARY_BYTES / 1e6:.2f} MB, round trip {RTT_S * 1e3:.0f} ms;"
        f" load {os.getloadavg()[0]:.1f}",
        f"{'stages x replicas':18}{'Mbit/s':>7}  {'codec':32}{'step s':>8}{'x fp32':>8}{'predicted':>10}"
        f"{'bytes':>7}",
    ]
    best: dict[int, float] = {}
    for row in rows:
        base = next(
            r
            for r in rows
            if (r["replicas"], r["mbps"], r["codec"]) == (row["replicas"], row["mbps"], "fp32")
        )
        row["gain"] = base["step_s"] / row["step_s"]
        row["predicted_gain"] = base["predicted"] / row["predicted"]
        lines.append(
            f"2 x {row['replicas']:<14}{row['mbps']:>7}  {row['codec']:32}{row['step_s']:8.3f}"
            f"{row['gain']:8.2f}{row['predicted_gain']:10.2f}{row['of_bytes']:7.2f}"
        )
        if row["mbps"] == min(r["mbps"] for r in rows) and row["codec"].startswith("AC-SGD"):
            best[row["replicas"]] = max(best.get(row["replicas"], 0.0), row["gain"])
    missed = [
        f"{what}: {best[replicas]:.2f} x fp32 over the slowest link, required at least {goal}"
        for replicas, what, goal in (
            (1, "AC-SGD's activations", ACTIVATION_GOAL),
            (2, "with gradients", GRADIENT_GOAL),
        )
        if best[replicas] < goal
    ]
    lines += [f"missed: {m}" for m in missed] or ["all goals reached"]
    figures = [{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    lines.append(json.dumps({"benchmark": "end_to_end", "passed": not missed, "rows": figures}))
    return lines, bool(missed)


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command(benchmark, __doc__, "two links, fewer micro-batches", arguments)


if __name__ == "__main__":
    sys.exit(main())

"""What searching placement and codecs together gains over choosing codecs for a placement that stands.

For DT-FM's networks and a job that leaves all codecs to `auto`: the step of the plan that the search finds,
against that of the placement (and shape) found without compression, given its codecs afterwards, its
knobs turned again. Both get the same error budget and the same effort. Goal: never longer than after (1 %,
the slack of `auto`), and shorter somewhere.
"""

from __future__ import annotations

import json
import sys
import time

from scheduler.job import JobSpec, job_from_json, job_to_json
from scheduler.planner import explained, plan_for, search_for
from scheduler.scenarios import scenario
from scheduler.step_search import StepSearchOptions
from scheduler.topology import Topology
from scheduler.units import duration
from sim import inputs
from tests.benchmarks.command import run

BUDGETS = (0.15, 0.4)
"""`max_error` of all three kinds of traffic: about 4 bits, and 3 or 2."""
NETWORKS = ("regional", "worldwide")
EFFORT = 3e8
"""Actions that a search replays, of each of the two."""
LEAST_GAIN = 1.02


def job_of(max_error: float | None, batch: int) -> JobSpec:
    """gpt3-xl, order and warm-up open; without a budget nothing is compressed."""
    given = inputs.JobInput(model="gpt3-xl-24", global_batch=batch)
    job = json.loads(job_to_json(inputs.read_job(given)))
    if max_error is not None:
        kinds = ("activations", "gradients", "reduce")
        job["compression"] = {kind: {"auto": {"max_error": max_error}} for kind in kinds}
    return job_from_json(json.dumps(job), "the benchmark's job")


def row(network: str, links: Topology, max_error: float, batch: int) -> tuple[str, float]:
    gpus = inputs.read_gpus(None, "fp16")
    asked, plain = job_of(max_error, batch), job_of(None, batch)
    work = inputs.read_work(asked, links.devices, gpus)
    options = StepSearchOptions(actions=EFFORT)
    began = time.process_time()
    joint = explained(search_for(asked, work.model, work.profiles, links, 1, options))
    seconds = time.process_time() - began
    before = search_for(plain, work.model, work.profiles, links, 1, options)[1].plan
    after = plan_for(before.placement, asked, work.model, work.profiles, links, 1)
    gain = after.predicted_step_s / joint.predicted_step_s
    cells = (
        network,
        f"{len(links)}",
        f"{max_error:g}",
        f"{before.n_stages} x {before.n_replicas}: {duration(before.predicted_step_s)}",
        duration(after.predicted_step_s),
        f"{joint.n_stages} x {joint.n_replicas}: {duration(joint.predicted_step_s)}",
        f"{gain:.3f}",
        f"{seconds:.0f}",
    )
    return f"| {' | '.join(cells)} |", gain


def benchmark(quick: bool) -> tuple[list[str], bool]:
    head = ("network", "devices", "max_error", "uncompressed", "codecs after", "together", "gain", "CPU s")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    gains = {}
    for n, batch in ((16, 256),) if quick else ((16, 256), (64, 1024)):
        for network in NETWORKS:
            for budget in BUDGETS:
                line, gain = row(network, scenario(network, n_devices=n), budget, batch)
                lines.append(line)
                gains[f"{network} {n} {budget:g}"] = round(gain, 4)
    missed = min(gains.values()) < 0.99 or max(gains.values()) < LEAST_GAIN
    lines += ["", json.dumps({"benchmark": "joint_codecs", "gain": gains, "missed": missed})]
    return lines, missed


if __name__ == "__main__":
    sys.exit(run(benchmark, __doc__, "16 devices only"))

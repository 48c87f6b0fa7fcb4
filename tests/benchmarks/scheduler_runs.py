"""What `tests.benchmarks.scheduler` runs: one search of one network with one seed.

DT-FM's networks, with its volumes compressed, with noise on the links, with twice the devices, and one of 64
regions with 512 and 4,096. Under the predicted step time: gpt3-xl-24, 1,024 samples a step in micro-batches
of one, on V100s; order, warm-up and recomputation left open.
"""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from scheduler.baselines import Baseline, baselines
from scheduler.bound import lower_bound_s
from scheduler.dtfm import PAPER_C_DP_BYTES, PAPER_C_PP_BYTES, DtfmObjective, Volumes
from scheduler.dtfm_blocks import search_any
from scheduler.encoding import places_of
from scheduler.job import JobSpec, ScheduleSpec
from scheduler.planner import search_for
from scheduler.scenarios import GBIT_BPS, NAMES, scenario, with_noise
from scheduler.step_baselines import step_baselines
from scheduler.step_search import StepSearchOptions
from scheduler.topology import Device, Topology
from sim import inputs
from sim.commands.plan import shape_of
from sim.replay import Work
from tests.benchmarks.cells import sources

DTFM, STEP = "dtfm", "step_time"
REGIONS = 64
TRIALS, SHORT = 4900, 300
"""Of DT-FM's own search: with the volumes and devices of the paper, and elsewhere, where it is never near."""
_DTFM_SOURCES = ("search", "refine", "encoding", "dtfm*", "matching", "bound", "scenarios", "baselines")
_STEP_SOURCES = ("step_*", "plan_search", "settings", "tuning", "blocks", "scenarios")


@dataclass(frozen=True)
class Case:
    """A line of a table. `stages` 0: the shape is the search's to find."""

    objective: str
    network: str
    stages: int = 0
    replicas: int = 0
    devices: int = 64
    noise: float = 0.0
    activations: int = 1
    """How many times smaller than the paper's; under DT-FM's objective alone, as are the gradients."""
    gradients: int = 1

    @property
    def name(self) -> str:
        noise = f" ±{100 * self.noise:.0f} %" if self.noise else ""
        shape = f"{self.stages}x{self.replicas}" if self.stages else "free"
        more = f", {self.devices} devices" if self.devices != 64 else ""
        less = f", {self.activations} / {self.gradients}" if self.objective == DTFM else ""
        return f"{self.network}{noise} {shape}{more}{less}"

    @property
    def published(self) -> bool:
        """Whether it is a network and volumes of the paper's."""
        return (self.activations, self.gradients, self.devices, self.noise) == (1, 1, 64, 0.0)

    @property
    def large(self) -> bool:
        return self.devices > 128

    def topology(self) -> Topology:
        if self.large:
            return many_regions(self.devices)
        plain = scenario(self.network, n_devices=self.devices)
        return with_noise(plain, self.noise, np.random.default_rng(1)) if self.noise else plain


@dataclass(frozen=True)
class Setting:
    case: Case
    seed: int
    """The first seed's run prices the baselines as well."""
    trials: int
    sources: str


@dataclass(frozen=True)
class Run:
    cost_s: float
    bound_s: float
    cpu_s: float
    """Of the search; compiled code is loaded before."""
    evaluations: int
    peak_bytes: int
    """Of the whole process until then."""
    how: str
    curve: list[list[float]]
    """(layouts judged, best so far)."""
    rivals_s: dict[str, float]
    """Structured seeds and, of the first seed, baselines."""


def cases(quick: bool) -> list[Case]:
    """Those that say most first."""
    noisy, plain, large, compressed = [], [], [], []
    every = list(product((1, 2, 4, 8, 16), (1, 2, 4, 8)))
    for name in NAMES:
        plain += [Case(DTFM, name, 8, 8), Case(STEP, name), Case(STEP, name, 8, 8)]
        noisy += [Case(DTFM, name, 8, 8, noise=0.3, activations=a, gradients=g)
                  for a, g in ([(1, 1)] if quick else [(1, 1), (4, 2), (16, 1)])]  # fmt: skip
        noisy += [Case(STEP, name, noise=0.3)] if not quick else []
        compressed += [Case(DTFM, name, 8, 8, activations=a, gradients=g)
                       for a, g in ([(4, 2), (16, 1)] if quick else every[1:])]  # fmt: skip
        if not quick or name == "worldwide":
            large.append(Case(DTFM, name, 16, 8, devices=128))
    if not quick:
        for n in (512, 4096):
            stages, replicas = shape_of(n, None, None)
            large += [Case(DTFM, "64 regions", stages, replicas, n), Case(STEP, "64 regions", devices=n)]
    return [*plain, *noisy, *large, *compressed]


def settings(case: Case, n_seeds: int, quick: bool) -> list[Setting]:
    """A case's runs; of thousands of devices one will do."""
    trials = 0 if case.large else TRIALS if case.published and not quick else SHORT
    names = _DTFM_SOURCES if case.objective == DTFM else _STEP_SOURCES
    code = sources(*(f"scheduler/{n}.py" for n in names))
    return [Setting(case, seed, trials, code) for seed in range(1 if case.large else n_seeds)]


def run(setting: Setting) -> Run:
    return _dtfm_run(setting) if setting.case.objective == DTFM else _step_run(setting)


def _dtfm_run(setting: Setting) -> Run:
    case, topology = setting.case, setting.case.topology()
    volumes = Volumes(PAPER_C_DP_BYTES / case.gradients, PAPER_C_PP_BYTES / case.activations)
    began = time.process_time()
    objective = DtfmObjective(topology, case.stages, case.replicas, volumes)
    places, bound = places_of(topology, objective), lower_bound_s(objective)
    result = search_any(objective, places, setting.seed, floor_s=bound)
    seconds = time.process_time() - began
    rivals = dict(result.seeds_s)
    if setting.seed == 0 and not case.large:
        rng = np.random.default_rng(0)
        rivals |= _costs(baselines(objective, places, rng, 1000, setting.trials))
    curve = [[float(n), s] for n, s in result.curve]
    return Run(
        result.placement.cost_s, bound, seconds, result.evaluations, _peak(), result.method, curve, rivals
    )


def _step_run(setting: Setting) -> Run:
    case, topology = setting.case, setting.case.topology()
    gpus = inputs.read_gpus(None, "fp16")
    memory = tuple(replace(d, memory_bytes=gpus.of(d).memory_bytes) for d in topology.devices)
    topology = replace(topology, devices=memory)
    job = _job(case).model_copy(update={"seed": setting.seed})
    work = inputs.read_work(job, topology.devices, gpus)
    _warm(job, work, topology)
    began = time.process_time()
    chosen = search_for(job, work.model, work.profiles, topology, 1, StepSearchOptions())[1]
    seconds = time.process_time() - began
    plan, result = chosen.plan, chosen.result
    rivals = dict(result.seeds_s)
    if setting.seed == 0 and case.stages:
        rivals |= _costs(step_baselines(chosen.found.case, np.random.default_rng(0), 200, setting.trials))
    order = f"{plan.schedule}+{plan.warmup_extra}{', recomputing' if plan.recompute else ''}"
    how = f"{plan.n_stages} x {plan.n_replicas}, {order}"
    curve = [[float(n), s] for n, s in result.curve]
    return Run(
        plan.predicted_step_s, chosen.bound_s, seconds, result.evaluations, _peak(), how, curve, rivals
    )


def _warm(job: JobSpec, work: Work, topology: Topology) -> None:
    """Load what is compiled: a process does so once, which is no search's time."""
    few = topology.subset(range(2))
    names = {d.name for d in few.devices}
    profiles = [p for p in work.profiles if p.device in names]
    small = job.model_copy(update={"parallelism": "auto"})
    search_for(small, work.model, profiles, few, 1, StepSearchOptions(actions=1e5))


def _costs(found: tuple[Baseline, ...]) -> dict[str, float]:
    return {b.name: b.cost_s for b in found}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _job(case: Case) -> JobSpec:
    sizes = inputs.JobInput(
        None, "gpt3-xl-24", 2048, 1024, 1, stages=case.stages or None, replicas=case.replicas or None
    )
    free = ScheduleSpec(name="auto", warmup_extra="auto")
    return inputs.read_job(sizes).model_copy(update={"schedule": free})


def many_regions(n_devices: int) -> Topology:
    """Regions anywhere on the globe: between them delays by distance and bandwidths that fall with the delay,
    both as in DT-FM's worldwide network; within one 5 ms and 2 Gbit/s."""
    rng = np.random.default_rng(0)
    spot = rng.normal(size=(REGIONS, 3))
    spot /= np.linalg.norm(spot, axis=1, keepdims=True)
    km = 6371 * np.arccos(np.clip(spot @ spot.T, -1, 1))
    delay_s = 0.005 + km * 1.6e-5
    gbit = 1.2 / (1 + delay_s / 0.1)
    np.fill_diagonal(delay_s, 0.005)
    np.fill_diagonal(gbit, 2.0)
    at = np.repeat(np.arange(REGIONS), n_devices // REGIONS)
    devices = tuple(Device(f"r{r}-{k}", region=f"r{r}") for k, r in enumerate(at.tolist()))
    return Topology(devices, delay_s[np.ix_(at, at)], gbit[np.ix_(at, at)] * GBIT_BPS)

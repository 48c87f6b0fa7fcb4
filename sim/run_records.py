"""What a simulated run is asked for, and what came of it. Decides nothing (`run.py` runs)."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from scheduler.exit_codes import ExitCode
from scheduler.job import JobSpec
from scheduler.plan import Plan
from scheduler.replan import Patience
from scheduler.timeline import Timeline


@dataclass(frozen=True, slots=True)
class RunOptions:
    steps: int
    tokens_a_step: int
    start_s: float = 0.0
    """Moment of the network's clock at which the first step begins."""
    save_every: int = 50
    """Steps between checkpoints; 0: none before the end."""
    copy_every: int = 0
    """Steps between the copies of each stage that a neighbour keeps; 0: there are none."""
    shape: tuple[int, int] | None = None
    """(stages, replicas) that the job asks for; None: left open."""
    settle_s: float = 5.0
    """From a loss that is noticed to the first step under a new plan, beside the layers' way: stop, plan,
    build the stages anew, connect."""
    restart_s: float = 60.0
    """The same where layers come from the checkpoint, and what a process that died takes to be there again:
    start, profile, load."""
    measure_s: float = 30.0
    """From a device's coming until it is profiled and its links are measured; no plan counts on it before."""
    wait_for_workers_s: float = 300.0
    """How long a run that cannot go on waits for devices, as the coordinator's --wait-for-workers."""
    look_every_s: float = 30.0
    """Least time between two looks at what those who came are good for, as the coordinator's --look-every."""
    replan_every: int = 0
    """Steps after which links are measured and a plan for them is made; 0: only when devices come or go."""
    patience: Patience = field(default_factory=lambda: Patience(steps_redone=0.0))
    """How much better, and how often in a row, that plan must look to be taken (`scheduler/replan.py`); its
    restart_s is what moving takes beside the layers' way."""
    deadline_s: float = inf
    """Moment at which the run is given up."""

    @classmethod
    def of(cls, job: JobSpec, steps: int) -> RunOptions:
        """With what the job says; all else by default."""
        return cls(
            steps,
            job.global_batch * job.sequence_length,
            copy_every=job.checkpoint.neighbours_every,
            shape=job.asked_shape,
        )


@dataclass(frozen=True, slots=True)
class StepDone:
    step: int
    start_s: float
    duration_s: float
    plan_version: int


@dataclass(frozen=True, slots=True)
class RunEvent:
    """Something that happened between steps, in words."""

    at_s: float
    text: str


@dataclass(slots=True)
class RunResult:
    """`steps` are those that count: one that was done again stands here once, as it was done last."""

    steps: list[StepDone] = field(default_factory=list)
    events: list[RunEvent] = field(default_factory=list)
    plans: list[Plan] = field(default_factory=list)
    timelines: list[Timeline] = field(default_factory=list)
    """One a plan: its first step."""
    start_s: float = 0.0
    end_s: float = 0.0
    tokens: int = 0
    recoveries: int = 0
    """Losses after which the run went on; `restarts` of them from a checkpoint."""
    restarts: int = 0
    moves: int = 0
    """Plans taken though the one before could have gone on."""
    steps_lost: int = 0
    device_s: dict[str, float] = field(default_factory=dict)
    """By device: seconds in which it held a rank, or was made ready to."""
    egress_bytes: dict[str, float] = field(default_factory=dict)
    """By region: what left it for others, steps that were lost and layers that moved included."""
    code: ExitCode = ExitCode.OK
    reason: str = "all steps are done"

    @property
    def total_s(self) -> float:
        return self.end_s - self.start_s

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.total_s if self.total_s > 0 else 0.0

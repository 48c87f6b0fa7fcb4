"""What can happen to a run, as the state machine sees it. Plain values: no sockets, no messages.

Events of a worker carry its name; the shell has checked who sent them. Events of the shell
itself (a plan was made, a manifest is written, time has passed) carry none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from protos.convert import PeerInfo
from scheduler.checkpoint_layout import LayerFileInfo
from scheduler.departures import Departure
from scheduler.exit_codes import ExitCode
from scheduler.following import Following
from scheduler.neighbours import Keeper
from scheduler.observed import Factors
from scheduler.plan import Plan
from scheduler.profile import DeviceProfile, LayerProfile
from scheduler.recovery import GoOn
from scheduler.topology import Device

# ---- membership


@dataclass(frozen=True, slots=True)
class Join:
    """A worker asks to be taken in. `incarnation` is new each time its process starts."""

    device: Device
    incarnation: str
    session: str
    peer: PeerInfo


@dataclass(frozen=True, slots=True)
class Connected:
    """The member's stream is open: commands reach it from here on."""

    worker: str


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The member's stream ended without a farewell."""

    worker: str
    reason: str


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """`waits_for`: the rank whose tensor its own is waiting for; None: for nobody's."""

    worker: str
    waits_for: int | None = None


@dataclass(frozen=True, slots=True)
class Leaving:
    worker: str
    reason: str
    code: Departure = Departure.LEFT


@dataclass(frozen=True, slots=True)
class Failed:
    """A worker says it failed; `fatal`: it cannot go on."""

    worker: str
    code: ExitCode
    reason: str
    fatal: bool
    peer: str = ""
    """To whom the link is cut, if that is what failed."""
    plan_version: int = 0
    """Under which it was cut; 0: under none."""


# ---- answers of workers


@dataclass(frozen=True, slots=True)
class Profiled:
    worker: str
    layers: tuple[LayerProfile, ...]
    profile: DeviceProfile
    data_digest: str
    n_samples: int
    n_eval_samples: int


@dataclass(frozen=True, slots=True)
class LinkSample:
    """One directed link as its sender measured it; `error` is '' or why the peer was not reached."""

    peer: str
    latency_s: float
    bandwidth_Bps: float
    """Of all streams together."""
    error: str = ""
    flow_Bps: float = 0.0
    """Of one stream alone; 0: as much as all."""
    relayed: bool = False
    """Measured through the relay, which its tensors will take too."""

    def times(self, factor: float) -> LinkSample:
        """The link on which everything takes `factor` times as long."""
        if factor == 1.0:
            return self
        return replace(
            self,
            latency_s=self.latency_s * factor,
            bandwidth_Bps=self.bandwidth_Bps / factor,
            flow_Bps=self.flow_Bps / factor,
        )


@dataclass(frozen=True, slots=True)
class LinksMeasured:
    worker: str
    links: tuple[LinkSample, ...]


@dataclass(frozen=True, slots=True)
class Ready:
    worker: str
    plan_version: int


@dataclass(frozen=True, slots=True)
class Holds:
    """What a worker that joined again still has of the model: layers start .. stop - 1 after `step` steps."""

    worker: str
    step: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class StepVote:
    """A rank has reduced the gradients of `step`, and steps its optimizer when it is told to.

    `loss_sum` is summed over `tokens`; both are 0 but on last stages. `squares`: of each of the stage's
    layers' gradients, summed; `own_square`: of what the rank itself computed, before replicas were added.
    """

    worker: str
    plan_version: int
    step: int
    loss_sum: float
    tokens: int
    squares: tuple[float, ...]
    duration_s: float
    sent_bytes: int
    raw_bytes: int
    own_square: float = 0.0
    bad_activation: bool = False
    bad_gradient: bool = False
    check_error: float | None = None
    """How far off another rank's work was, if this one checked it; relative."""


@dataclass(frozen=True, slots=True)
class Copied:
    """The worker has the copies of `step` that it keeps for others."""

    worker: str
    plan_version: int
    step: int


@dataclass(frozen=True, slots=True)
class Followed:
    """All layers that the worker follows have seen `step` steps; or why it cannot go on with following, or
    with giving layers to who follows."""

    worker: str
    version: int
    step: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class Met:
    """What the layers are that the worker gives or follows, after `step` steps: layer -> SHA-256."""

    worker: str
    version: int
    step: int
    digests: Mapping[int, bytes]


@dataclass(frozen=True, slots=True)
class Saved:
    worker: str
    step: int
    files: tuple[LayerFileInfo, ...]


@dataclass(frozen=True, slots=True)
class Evaluated:
    worker: str
    step: int
    loss_sum: float
    tokens: int


# ---- the shell's own


@dataclass(frozen=True, slots=True)
class LayerStored:
    """A file of the checkpoint of `step` is on disk, and this is what was written."""

    step: int
    file: LayerFileInfo


@dataclass(frozen=True, slots=True)
class SaveFailed:
    step: int
    reason: str


@dataclass(frozen=True, slots=True)
class ManifestWritten:
    step: int


@dataclass(frozen=True, slots=True)
class Planned:
    """`way`: how a run that was interrupted goes on with the plan; None: it begins with it."""

    plan: Plan
    way: GoOn | None = None
    keepers: tuple[Keeper, ...] = ()
    """Who keeps copies for whom, if the job wants any."""
    copying_s: float = 0.0
    """How long a set of copies is expected to take."""


@dataclass(frozen=True, slots=True)
class PlanFailed:
    version: int
    reason: str


@dataclass(frozen=True, slots=True)
class Observed:
    """How devices and links of the plan are now, against how they were when it was made."""

    plan_version: int
    factors: Factors


@dataclass(frozen=True, slots=True)
class Reconsidered:
    """Whether to leave the plan of this version for another, and why (not)."""

    plan_version: int
    plan: Plan | None
    """To move to; None: stay."""
    streak: int
    reason: str
    following: Following | None = None
    """How the layers that it needs travel before it is taken; None: when it is."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Finish the step, save, end. `now`: end at once and save nothing."""

    reason: str
    now: bool = False


@dataclass(frozen=True, slots=True)
class Overslept:
    """The coordinator itself did nothing for so long, though it should have."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; `now` is the argument of `handle`."""


Event = (
    Join
    | Connected
    | Disconnected
    | Heartbeat
    | Leaving
    | Failed
    | Profiled
    | LinksMeasured
    | Ready
    | StepVote
    | Holds
    | Copied
    | Followed
    | Met
    | Saved
    | Evaluated
    | LayerStored
    | SaveFailed
    | ManifestWritten
    | Planned
    | PlanFailed
    | Observed
    | Reconsidered
    | Drain
    | Overslept
    | Tick
)

"""What the state machine wants done. Data only: the shell carries it out.

`Order` goes to a worker; everything else is for the shell (plan, record, write a manifest).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from protos.convert import PeerInfo
from scheduler.bad_numbers import Conduct
from scheduler.checkpoint_layout import LayerFileInfo
from scheduler.departures import Departure
from scheduler.exit_codes import ExitCode
from scheduler.following import Feed
from scheduler.layer_sources import Source
from scheduler.neighbours import Keeper
from scheduler.plan import Plan
from scheduler.profile import DeviceProfile, ModelProfile
from scheduler.recovery import Standing
from scheduler.spot_checks import SpotCheck
from scheduler.topology import Device

from .events import LinkSample

# ---- to a worker


@dataclass(frozen=True, slots=True)
class Profile:
    """Time the layers."""


@dataclass(frozen=True, slots=True)
class MeasureLinks:
    peers: tuple[PeerInfo, ...]
    probe_bytes: int
    streams: int


@dataclass(frozen=True, slots=True)
class LayerPart:
    """Part `part` of `parts` of a layer, to be sent to the worker `to`."""

    layer: int
    to: str
    part: int
    parts: int


@dataclass(frozen=True, slots=True)
class TakePlan:
    """Layers come from where `sources` say, as they are after `step` steps. Without sources: from `files` of
    the checkpoint of `restore_step`, or fresh if that is None."""

    plan: Plan
    peers: tuple[PeerInfo, ...]
    """Of the ranks, then of the guests."""
    restore_step: int | None
    files: tuple[LayerFileInfo, ...]
    step: int = 0
    """The step that comes next."""
    sources: tuple[Source, ...] = ()
    serves: tuple[LayerPart, ...] = ()
    guests: tuple[str, ...] = ()
    """Workers that serve layers without having a rank; they count as ranks behind the last."""
    keepers: tuple[Keeper, ...] = ()
    loading_s: float = 0.0
    """How long it is expected to take until the last rank has its layers; `copying_s`: a set of copies."""
    copying_s: float = 0.0


@dataclass(frozen=True, slots=True)
class RunSteps:
    """Run [start, stop); `record`: the steps whose spans are wanted, with what codecs change; `watch`: whose
    spans alone are."""

    plan_version: int
    start: int
    stop: int
    record: tuple[int, ...]
    watch: tuple[int, ...] = ()
    copy_step: int = 0
    """After so many steps neighbours get copies; 0: not among these."""
    copy_keeps: int = 0
    """The copies of this step stay until those are there."""


@dataclass(frozen=True, slots=True)
class Commit:
    """All ranks have voted, and it is written down: step, with the norm of the rank's pipeline."""

    plan_version: int
    step: int
    grad_norm: float
    check: SpotCheck | None = None
    """Of the next step, if the rank has a part in it."""


@dataclass(frozen=True, slots=True)
class Save:
    step: int


@dataclass(frozen=True, slots=True)
class Evaluate:
    step: int


@dataclass(frozen=True, slots=True)
class AbortPlan:
    plan_version: int
    reason: str


@dataclass(frozen=True, slots=True)
class Stop:
    code: ExitCode
    reason: str


@dataclass(frozen=True, slots=True)
class Admit:
    """Take data connections of these public keys and of no others. The shell's own: no plan depends on it."""

    keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Follow:
    """While the plan's steps go on: give layers to others, or follow theirs, as `feeds` say."""

    version: int
    plan_version: int
    peers: tuple[PeerInfo, ...]
    feeds: tuple[Feed, ...]


@dataclass(frozen=True, slots=True)
class Meet:
    """No step follows `step`: say what the layers that are given and followed are when they have seen it."""

    version: int
    step: int


@dataclass(frozen=True, slots=True)
class Unfollow:
    """Give, follow and keep nothing of it any more."""

    version: int


WorkerCommand = (
    Profile
    | MeasureLinks
    | TakePlan
    | RunSteps
    | Commit
    | Save
    | Evaluate
    | AbortPlan
    | Stop
    | Admit
    | Follow
    | Meet
    | Unfollow
)


@dataclass(frozen=True, slots=True)
class Order:
    """A command to one worker."""

    worker: str
    body: WorkerCommand


# ---- to the shell


@dataclass(frozen=True, slots=True)
class MakePlan:
    """Plan for these devices; `links` are the measured directed pairs. Answered by Planned or PlanFailed.

    `standing`: where a run stands that was interrupted; the plan is then the way it goes on by, for those
    who are here. Other devices only hand their layers over.
    """

    version: int
    model: ModelProfile
    devices: tuple[Device, ...]
    profiles: tuple[DeviceProfile, ...]
    links: tuple[tuple[str, LinkSample], ...]
    standing: Standing | None = None
    chosen: tuple[Plan, str] | None = None
    """A plan that the run is to move to, and why: none is looked for, unless that one cannot be had."""


@dataclass(frozen=True, slots=True)
class Reconsider:
    """Look for a faster plan than the running one. Answered by Reconsidered. `streak`: the last answer's."""

    request: MakePlan
    running: Plan
    step: int
    steps: int
    streak: int
    step_s: float = 0.0
    """As steps were measured; 0: none was."""


@dataclass(frozen=True, slots=True)
class Rewind:
    """The run goes back to `step` steps: what was committed from there on counts no more."""

    step: int
    reason: str


@dataclass(frozen=True, slots=True)
class RecordStep:
    """A step is committed. It consumed samples [first_sample, end_sample) of the sampler's order."""

    step: int
    plan_version: int
    loss: float
    tokens: int
    grad_norm: float
    duration_s: float
    sent_bytes: int
    raw_bytes: int
    first_sample: int
    end_sample: int


@dataclass(frozen=True, slots=True)
class RecordConduct:
    """Whose numbers were bad so far, and who is not taken in any more, by identity."""

    conduct: Conduct
    quarantined: frozenset[str]
    reason: str


@dataclass(frozen=True, slots=True)
class RecordCheck:
    """What a spot check said. `errors`: of the checkers, by name."""

    check: SpotCheck
    worker: str
    """That was checked."""
    errors: Mapping[str, float]
    verdict: str
    """agree, at fault or suspected."""
    reason: str


@dataclass(frozen=True, slots=True)
class RecordEval:
    step: int
    loss: float
    tokens: int


@dataclass(frozen=True, slots=True)
class WriteManifest:
    """All files are stored and agreed on. Answered by ManifestWritten or SaveFailed."""

    step: int
    files: tuple[LayerFileInfo, ...]
    next_sample: int
    loss: float | None
    eval_loss: float | None


@dataclass(frozen=True, slots=True)
class DiscardSave:
    """Remove the files of an unfinished checkpoint: no manifest will name them."""

    step: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """The Join that was just handled is not granted."""

    code: ExitCode
    reason: str


@dataclass(frozen=True, slots=True)
class Evict:
    """End the member's session: it is no longer one."""

    worker: str
    reason: str
    code: Departure


@dataclass(frozen=True, slots=True)
class Finish:
    """The run has ended with this code."""

    code: ExitCode
    reason: str


Command = (
    Order
    | MakePlan
    | Reconsider
    | Rewind
    | RecordStep
    | RecordConduct
    | RecordCheck
    | RecordEval
    | WriteManifest
    | DiscardSave
    | Refuse
    | Evict
    | Finish
)

"""The state of a run: frozen values, changed only by making new ones. Decides nothing.

`state.py` has the one function that changes it; `prepare.py` and `drive.py` are its halves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from protos.convert import PeerInfo
from scheduler.bad_numbers import Conduct, History
from scheduler.checkpoint_layout import LayerFileInfo
from scheduler.dead_links import Pair
from scheduler.departures import Gone
from scheduler.exit_codes import ExitCode
from scheduler.layer_sources import Holding
from scheduler.liveness import HEARTBEAT_S, SILENCE, STEP, Patience
from scheduler.neighbours import Keeper
from scheduler.observed import NOTHING_CHANGED, Factors
from scheduler.plan import Plan
from scheduler.profile import LayerProfile
from scheduler.spot_checks import Partners, SpotCheck
from scheduler.topology import Device

from .ahead import Ahead
from .commands import AbortPlan, Command, Finish, Order, Stop
from .events import Evaluated, LinkSample, Profiled, StepVote

Phase = Literal[
    "gathering",
    "profiling",
    "measuring",
    "planning",
    "loading",
    "running",
    "evaluating",
    "saving",
    "draining",
    "finished",
    "failed",
]
OVER: frozenset[Phase] = frozenset({"finished", "failed"})
PREPARING: frozenset[Phase] = frozenset({"gathering", "profiling", "measuring", "planning"})
"""Phases in which losing a worker loses nothing: the run gathers again."""

K = TypeVar("K")
V = TypeVar("V")


def frozen(m: Mapping[K, V]) -> Mapping[K, V]:
    """A copy that cannot be written to."""
    return MappingProxyType(dict(m))


def put(m: Mapping[K, V], key: K, value: V) -> Mapping[K, V]:
    return MappingProxyType({**m, key: value})


def drop(m: Mapping[K, V], key: K) -> Mapping[K, V]:
    return MappingProxyType({k: v for k, v in m.items() if k != key})


@dataclass(frozen=True, slots=True)
class Options:
    """What the run is driven by: numbers of the job, and how patient the coordinator is."""

    steps: int
    global_batch: int
    micro_batch: int
    """Samples in the micro-batches that workers profile."""
    sequence_length: int
    n_layers: int
    eval_every: int = 0
    evaluate: bool = True
    """Whether the job evaluates at all."""
    save_every: int = 0
    """Steps between checkpoints; 0: only at the end."""
    min_workers: int = 1
    dry_run: bool = False
    heartbeat_s: float = HEARTBEAT_S
    silence: Patience = SILENCE
    step: Patience = STEP
    regather_s: float = 300.0
    """How long a run whose plan was interrupted waits for workers that make another possible."""
    await_s: float = 30.0
    """How long a run that is taken up waits for the rest of its workers, once one of them is back."""
    checks_every: int = 0
    """Steps between two spot checks; 0: there are none."""
    check_tolerance: float = 1e-2
    check_key: bytes = b""
    """What they are drawn by; nobody else's."""
    neighbours_every: int = 0
    """Steps between copies of each stage that a neighbour keeps; 0: there are none."""
    reconsider_s: float = 30.0
    """Between two looks for a faster plan while one runs; 0: there are none."""
    probe_streams: int = 4
    ahead_s: float = 1.0
    """Steps are granted this far ahead, so that no worker waits for the coordinator's answer."""


@dataclass(frozen=True, slots=True)
class Restore:
    """The checkpoint that the run continues from."""

    step: int
    files: tuple[LayerFileInfo, ...]
    eval_loss: float | None = None
    loss: float | None = None


@dataclass(frozen=True, slots=True)
class TakenUp:
    """Where a run stood whose coordinator is started again: its workers may still stand there."""

    plan: Plan
    """That ran last."""
    done: int
    """Steps that are committed."""
    grad_norm: float
    """Of the last of them."""


@dataclass(frozen=True, slots=True)
class Member:
    """A worker that was taken in. `connected`: its stream is open."""

    device: Device
    incarnation: str
    session: str
    peer: PeerInfo
    seen_s: float
    connected: bool = False
    beat_s: float | None = None
    """When the last heartbeat came."""
    beats_s: tuple[float, ...] = ()
    """Intervals between its heartbeats."""
    waits_for: int | None = None
    """The rank whose tensor it waited for at its last heartbeat; None: for nobody's."""
    occupies: tuple[str, ...] = ()
    """The hosts that its measurement under way must have to itself; () when it measures nothing."""


def identity(member: Member) -> str:
    """A worker's public key, which outlasts its name; its name if it has none."""
    return member.peer.curve_public_key.decode() or member.device.name


@dataclass(frozen=True, slots=True)
class Saving:
    """A checkpoint on its way: what the ranks say they put, and what the store says it holds."""

    step: int
    said: Mapping[str, tuple[LayerFileInfo, ...]] = field(default_factory=lambda: frozen({}))
    stored: Mapping[str, LayerFileInfo] = field(default_factory=lambda: frozen({}))
    writing: bool = False


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is known of faster plans than the one that runs; begins anew with every plan."""

    factors: Factors = NOTHING_CHANGED
    """How devices and links are now, against the profiles and measurements."""
    seen: int = 0
    """Steps that went into the factors."""
    looking: bool = False
    looked_s: float = 0.0
    looked_at: int = -1
    """`seen` at the last look."""
    streak: int = 0
    """Looks in a row that spoke for moving."""
    chosen: Plan | None = None
    """To be taken at the next boundary."""
    reason: str = ""
    """What the last look said."""


@dataclass(frozen=True, slots=True)
class State:
    """Everything the coordinator knows about its run. `done`: steps committed, also the next step."""

    options: Options
    phase: Phase = "gathering"
    reason: str = "waiting for workers"
    members: Mapping[str, Member] = field(default_factory=lambda: frozen({}))
    departed: Mapping[str, Gone] = field(default_factory=lambda: frozen({}))
    """Workers that were members, and why they are not."""
    profiles: Mapping[str, Profiled] = field(default_factory=lambda: frozen({}))
    links: Mapping[tuple[str, str], LinkSample] = field(default_factory=lambda: frozen({}))
    plan_version: int = 0
    plan: Plan | None = None
    plan_first: int = 0
    """The step that the plan began at, or will."""
    team: tuple[str, ...] = ()
    """The workers that were planned for; later joiners stand by. () before planning."""
    ready: frozenset[str] = frozenset()
    first: int = 0
    """The step this process of the run began at."""
    checkpoint: Restore | None = None
    """The last one: where the run goes back to if layers are lost."""
    ran: Plan | None = None
    """The plan that ran last; None: none has run yet."""
    held: Mapping[str, Holding] = field(default_factory=lambda: frozen({}))
    """While another plan is made and loaded: who holds what of the model."""
    keepers: tuple[Keeper, ...] = ()
    """Who keeps copies for whom under the plan."""
    copying: int = 0
    """The step whose copies are under way; 0: none are."""
    copied: frozenset[str] = frozenset()
    """Keepers that have those of step `copying`."""
    copies: Mapping[str, Holding] = field(default_factory=lambda: frozen({}))
    """The last that all had: of themselves and of their neighbours."""
    guests: tuple[str, ...] = ()
    """Workers without a rank that serve layers while the plan is loaded."""
    told_off: Mapping[str, Gone] = field(default_factory=lambda: frozen({}))
    """Members that were told to stop, and why; their connection is still open."""
    leaving: Mapping[str, Gone] = field(default_factory=lambda: frozen({}))
    """Members that are told to go, and why: they finish the step and hand their layers over first."""
    awaited: tuple[str, ...] = ()
    """Workers of the plan that ran before the coordinator was started again, until all are back or it is
    no use to wait."""
    interrupted: str = ""
    """Why the plan that ran last runs no more; '' while one runs."""
    interrupted_s: float = 0.0
    refused: tuple[str, ...] = ()
    """Workers for whom there was no plan to go on by; another is asked for when others are there."""
    done: int = 0
    granted: int = 0
    votes: Mapping[str, StepVote] = field(default_factory=lambda: frozen({}))
    """For step `done`, by worker."""
    norms: History = field(default_factory=History)
    """Of the gradients of committed steps."""
    conduct: Conduct = field(default_factory=Conduct)
    """By identity, the steps that a worker's numbers spoiled."""
    check: SpotCheck | None = None
    """Of step `done`, under the plan that runs."""
    checked: str = ""
    """What the last spot check said."""
    partners: Partners = field(default_factory=lambda: frozen({}))
    """By identity, with whom a worker disagreed without it being known who was wrong."""
    repeated: int = -1
    """The step that was done again as it was, because its numbers looked bad."""
    overdue_at: int = -1
    """The step that was done again because it did not end."""
    cut: tuple[int, int] = (-1, 0)
    """(step, how often links broke while it was done)."""
    cut_pairs: Mapping[Pair, int] = field(default_factory=lambda: frozen({}))
    """How often each did in that step."""
    dead: frozenset[Pair] = frozenset()
    """Links that carry nothing, though both ends live; plans go around them."""
    quarantined: frozenset[str] = frozenset()
    """Identities that are not taken in any more."""
    progress_s: float = 0.0
    """When the last step was committed, or the steps began."""
    steps_s: tuple[float, ...] = ()
    """Intervals between commits."""
    grad_norm: float = 0.0
    """Of the last commit."""
    loss: float | None = None
    eval_loss: float | None = None
    evaluated_at: int = -1
    saved_at: int = -1
    save_failed_at: int = -1
    evaluations: Mapping[str, Evaluated] = field(default_factory=lambda: frozen({}))
    saving: Saving | None = None
    outlook: Outlook = Outlook()
    ahead: Ahead | None = None
    """Layers of a plan to come that travel beside the steps."""
    follows: int = 0
    """How often that was begun."""
    draining: str = ""
    """'' or why the run is to end early."""
    code: ExitCode = ExitCode.OK

    @property
    def layers(self) -> tuple[LayerProfile, ...]:
        """The model's layers, as the first profile says; () before that."""
        return next((p.layers for p in self.profiles.values()), ())

    @property
    def n_eval_samples(self) -> int:
        return max((p.n_eval_samples for p in self.profiles.values()), default=0)

    @property
    def connected(self) -> tuple[str, ...]:
        """Members whose stream is open, in the order they joined."""
        return tuple(n for n, m in self.members.items() if m.connected)

    @property
    def copied_at(self) -> int:
        """The step of the last copies that all had; 0: there are none."""
        return max((h.step for h in self.copies.values()), default=0)

    @property
    def ranks(self) -> tuple[str, ...]:
        """The workers of the plan, by rank."""
        return tuple(self.plan.device(r) for r in range(self.plan.n_ranks)) if self.plan else ()

    @property
    def known(self) -> tuple[str, ...]:
        """Members to plan for: connected, profiled, with measured links to each other, and not leaving."""
        return tuple(n for n in self._measured if n not in self.leaving)

    @property
    def donors(self) -> tuple[str, ...]:
        """Members that leave and can still hand their layers over."""
        return tuple(n for n in self._measured if n in self.leaving and n in self.held)

    @property
    def _measured(self) -> tuple[str, ...]:
        found: list[str] = []
        for name in self.connected:
            pairs = [pair for other in found for pair in ((name, other), (other, name))]
            if name in self.profiles and all(pair in self.links for pair in pairs):
                found.append(name)
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Transition:
    """The next state, what is to be done, and why, in words."""

    state: State
    commands: tuple[Command, ...] = ()
    reason: str = ""


def step_to(state: State, reason: str, *commands: Command, **changes: Any) -> Transition:
    """The transition that changes these fields for this reason; a new phase takes the reason along."""
    if "phase" in changes:
        changes["reason"] = reason
    return Transition(replace(state, **changes), commands, reason)


def ignored(state: State, reason: str) -> Transition:
    return Transition(state, (), reason)


def then(first: Transition, second: Transition) -> Transition:
    """Both, one after the other; `second` was made from `first.state`."""
    reason = "; ".join(r for r in (first.reason, second.reason) if r)
    return Transition(second.state, first.commands + second.commands, reason)


def fail(state: State, code: ExitCode, reason: str) -> Transition:
    """End the run: abort what is in flight, send everybody home. The last checkpoint stays."""
    return _end(state, "failed", code, reason)


def finish(state: State, reason: str) -> Transition:
    return _end(state, "finished", ExitCode.OK, reason)


def _end(state: State, phase: Phase, code: ExitCode, reason: str) -> Transition:
    commands: list[Command] = []
    for name, member in state.members.items():
        if not member.connected:
            continue
        if phase == "failed" and state.plan is not None and name in (*state.ranks, *state.guests):
            commands.append(Order(name, AbortPlan(state.plan.version, reason)))
        commands.append(Order(name, Stop(code, reason)))
    commands.append(Finish(code, reason))
    return step_to(state, reason, *commands, phase=phase, code=code, saving=None, votes=frozen({}))

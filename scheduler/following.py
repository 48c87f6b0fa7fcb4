"""Layers that travel while the steps of the running plan go on, so that a move to another plan need not wait
for them: who gives which layers to whom, how fast, and whether it pays.

A follower gets each layer once, as it is after some step, and from there on every step's gradients, which its
optimizer takes as the donor's does. At the boundary only the last step's gradients are left to come, a third
of weights and AdamW's state. So it pays if a link carries a step's gradients in a step's time, with room to
spare; where it does not, the layers travel at the boundary. Pure: moves nothing, knows no member and no
message.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from scheduler.flows import TopologyNetwork
from scheduler.layer_sources import holdings_of, layer_bytes
from scheduler.moving import transfers_s
from scheduler.plan import Plan
from scheduler.profile import ModelProfile
from scheduler.recovery import fits
from scheduler.replan import Measured
from scheduler.units import count, duration, size

SHARE = 0.75
"""Of a link's bandwidth that following takes at most; the rest, and what it does not need, is the steps'."""
ROOM = 0.9
"""Of a step's time in which its gradients must be there: what is left brings the layers themselves."""
LEAST_GAIN_S = 1.0
"""A pause that is shorter by less is not worth following for."""
BACKLOG_STEPS = 4
"""Of gradients that wait at a donor at most, beside the largest layer: a first layer that is all there is
takes three steps' time, weights and AdamW's state, on a link that just carries its gradients."""


@dataclass(frozen=True, slots=True)
class Feed:
    """What one device gives another, layer after layer, and how fast at most."""

    donor: str
    follower: str
    layers: tuple[int, ...]
    rate_Bps: float

    def layer_bytes(self, model: ModelProfile) -> int:
        """Weights and optimizer state."""
        return sum(layer_bytes(model, x) for x in self.layers)

    def gradient_bytes(self, model: ModelProfile) -> int:
        """Of one step."""
        return sum(model.layers[x].parameter_bytes for x in self.layers)


@dataclass(frozen=True, slots=True)
class Following:
    """`steps`: after so many all followers should have caught up. `pause_s`: what is left for the boundary,
    and `loading_s`: what the layers would take there instead."""

    feeds: tuple[Feed, ...]
    steps: int
    pause_s: float
    loading_s: float
    reason: str

    @property
    def participants(self) -> tuple[str, ...]:
        return tuple(sorted({n for f in self.feeds for n in (f.donor, f.follower)}))

    @property
    def followers(self) -> tuple[str, ...]:
        return tuple(sorted({f.follower for f in self.feeds}))


def following(
    running: Plan, plan: Plan, now: Measured, step: int, steps: int, step_s: float
) -> Following | str:
    """How layers of `plan` follow those of `running`, whose steps take `step_s`, after `step` of `steps`
    steps; or why they do not, in words."""
    if running.local_steps or plan.local_steps:
        return "replicas that step alone hold no layer that another could follow"
    feeds = _feeds(running, plan, now)
    if not feeds:
        return "no layer travels"
    network = TopologyNetwork(now.topology)
    layers_s = transfers_s(network, [(f.donor, f.follower, f.layer_bytes(now.model)) for f in feeds])
    gradients_s = transfers_s(network, [(f.donor, f.follower, f.gradient_bytes(now.model)) for f in feeds])
    if layers_s - gradients_s < LEAST_GAIN_S:
        return f"the layers travel at the boundary, in {duration(layers_s)}"
    if gradients_s > SHARE * ROOM * step_s:
        return (
            f"the layers travel at the boundary, in {duration(layers_s)}: a step's gradients would take"
            f" {duration(gradients_s / SHARE)} of the links' {SHARE:.0%}, a step takes {duration(step_s)}"
        )
    needed = 1 + ceil(layers_s / SHARE / (step_s - gradients_s / SHARE))
    if step + needed >= steps:
        return (
            f"the layers travel at the boundary: {count(needed, 'step')} to catch up, {steps - step} are left"
        )
    if short := _short_of_memory(running, feeds, now):
        return f"the layers travel at the boundary: {short} has no room for what following keeps"
    n_bytes = sum(f.layer_bytes(now.model) for f in feeds)
    step_bytes = sum(f.gradient_bytes(now.model) for f in feeds)
    reason = (
        f"{size(n_bytes)} of layers travel while about {count(needed, 'step')} go on, with"
        f" {size(step_bytes)} of gradients a step and at most {SHARE:.0%} of"
        f" each link; {duration(gradients_s)} of {duration(layers_s)} are left for the boundary"
    )
    return Following(feeds, needed, gradients_s, layers_s, reason)


def _feeds(running: Plan, plan: Plan, now: Measured) -> tuple[Feed, ...]:
    """Every device that lacks layers gets each from the holder whose link, with what it carries already,
    brings it soonest."""
    index = {d.name: i for i, d in enumerate(now.topology.devices)}
    holders = {n: h.layers for n, h in holdings_of(running, 0, tuple(index)).items()}
    given: dict[tuple[str, str], list[int]] = defaultdict(list)
    busy: dict[tuple[str, str], int] = defaultdict(int)
    for rank in range(plan.n_ranks):
        name = plan.device(rank)
        for layer in range(*plan.partition[plan.stage_of(rank)]):
            donors = [n for n, layers in holders.items() if layer in layers]
            if name in donors or not donors:
                continue
            n_bytes = layer_bytes(now.model, layer)
            link = min(
                ((d, name) for d in donors),
                key=lambda x: (now.topology.transfer_s(index[x[0]], index[x[1]], busy[x] + n_bytes), x),
            )
            busy[link] += n_bytes
            given[link].append(layer)
    bandwidth_Bps = now.topology.bandwidth_Bps
    return tuple(
        Feed(a, b, tuple(layers), SHARE * float(bandwidth_Bps[index[a], index[b]]))
        for (a, b), layers in given.items()
    )


def _short_of_memory(running: Plan, feeds: Sequence[Feed], now: Measured) -> str:
    """A device of the running plan whose memory is known and too small for what it keeps beside its stage: a
    donor its largest layer and what waits of gradients, a follower the layers. '': none."""
    extra: dict[str, int] = defaultdict(int)
    for f in feeds:
        extra[f.donor] += max(layer_bytes(now.model, x) for x in f.layers)
        extra[f.donor] += BACKLOG_STEPS * f.gradient_bytes(now.model)
        extra[f.follower] += f.layer_bytes(now.model)
    return next((n for n in sorted(extra) if not fits(running, now.model, now.topology, {n: extra[n]})), "")

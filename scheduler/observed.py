"""What running steps say of devices and links, from the spans that ranks report anyway. No probe is sent.

A plan is its own yardstick: how long things take now is held against how long they took when the plan's
steps had settled, and not against the prediction. A model that is off by the same factor everywhere would
else make all that runs look slower than what stands by.

    device       forward and backward of its rank, summed: a factor on its profile
    pipeline     per pair of neighbours, soonest way there plus soonest way back. Each way counts from the
                 sender's hand-over to the start of what uses it, on two clocks; their sum needs neither clock
    replicas     the shortest reduction of the group: who comes last waits for the bytes alone

What a link takes longer than it did is added to what was measured of it before the plan, half of it each
way, and the link is taken to be slower by that factor altogether. A link whose transfers are never waited
for has an upper bound for a figure; that it grows means nothing is lost yet.

Pure: spans in, factors out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from scheduler.plan import Plan
from scheduler.profile import DeviceProfile
from scheduler.timeline import Span
from scheduler.topology import Topology

SETTLE = 2
"""Samples at the beginning of a plan that count for nothing: kernels are built, caches are filled."""
FIRST = 4
"""Samples that make the yardstick."""
LAST = 3
"""Samples that say how it is now: their median, so that a step that stutters says nothing."""
MOST_FACTOR = 100.0

Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Factors:
    """How many times as long as before the plan: computing, and bytes over links, both ways alike."""

    devices: Mapping[str, float] = field(default_factory=dict)
    links: Mapping[Pair, float] = field(default_factory=dict)

    @property
    def largest(self) -> float:
        """The most that anything has changed, up or down; 1: nothing has."""
        return max((max(f, 1 / f) for f in (*self.devices.values(), *self.links.values())), default=1.0)

    def profile(self, p: DeviceProfile) -> DeviceProfile:
        """As the device is now."""
        f = self.devices.get(p.device, 1.0)
        if f == 1.0:
            return p

        def times(seconds: Sequence[float]) -> tuple[float, ...]:
            return tuple(f * s for s in seconds)

        return replace(
            p,
            forward_s=times(p.forward_s),
            backward_s=times(p.backward_s),
            optimizer_s=times(p.optimizer_s),
            forward_fixed_s=times(p.forward_fixed_s),
            backward_fixed_s=times(p.backward_fixed_s),
            forward_pairs_s=times(p.forward_pairs_s),
            backward_pairs_s=times(p.backward_pairs_s),
        )

    def link(self, src: str, dst: str) -> float:
        return self.links.get((src, dst), 1.0)

    def worst(self) -> str:
        """What has changed most, in words; '' if nothing is known."""
        named = {f"{d} computes": f for d, f in self.devices.items()}
        named |= {f"{a} <-> {b} carries": f for (a, b), f in self.links.items() if a < b}
        if not named:
            return ""
        what, f = max(named.items(), key=lambda x: (max(x[1], 1 / x[1]), x[0]))
        return f"{what} in {f:.2g} times the time"


NOTHING_CHANGED = Factors()


@dataclass(frozen=True, slots=True)
class Figure:
    """Seconds of one step, and over which ways how many bytes went in them (none: it was computed)."""

    seconds: float
    ways: tuple[tuple[int, int, int], ...] = ()
    """(from, to, bytes) by rank."""


Key = tuple[str, int, int]
"""("device", rank, -1), ("pipeline", rank, next rank), ("replicas", stage, -1)."""


@dataclass(frozen=True, slots=True)
class _Series:
    ways: tuple[tuple[int, int, int], ...]
    first: tuple[float, ...] = ()
    last: tuple[float, ...] = ()

    def add(self, figure: Figure) -> _Series:
        series = self if self.ways == figure.ways else _Series(figure.ways)
        if len(series.first) < SETTLE + FIRST:
            return replace(series, first=(*series.first, figure.seconds))
        return replace(series, last=(*series.last, figure.seconds)[-LAST:])

    @property
    def before_and_now(self) -> tuple[float, float] | None:
        """None until there is enough of both."""
        if len(self.last) < LAST:
            return None
        return median(self.first[SETTLE:]), median(self.last)


@dataclass(frozen=True, slots=True)
class Observed:
    """What was seen of one plan so far."""

    series: Mapping[Key, _Series] = field(default_factory=dict)

    def add(self, plan: Plan, spans: Iterable[Span]) -> Observed:
        """With one step's spans of all ranks."""
        series = dict(self.series)
        for key, figure in figures(plan, spans).items():
            series[key] = series.get(key, _Series(figure.ways)).add(figure)
        return Observed(series)

    def factors(self, plan: Plan, topology: Topology) -> Factors:
        """Against `topology`, which the plan was made with; of what has been seen often enough."""
        devices: dict[str, float] = {}
        links: dict[Pair, float] = {}
        for (kind, at, _), series in self.series.items():
            if (seen := series.before_and_now) is None:
                continue
            before_s, now_s = seen
            if kind == "device":
                devices[plan.device(at)] = _bounded(now_s / before_s if before_s > 0 else 1.0)
                continue
            named = [(plan.device(a), plan.device(b), n) for a, b, n in series.ways]
            each_s = [topology.transfer_s(topology.index(a), topology.index(b), n) for a, b, n in named]
            was_s = sum(each_s) if kind == "pipeline" else max(each_s)
            factor = _bounded((was_s + now_s - before_s) / was_s if was_s > 0 else 1.0)
            links |= {(a, b): factor for a, b, _ in named}
        return Factors(devices, links)


def _bounded(factor: float) -> float:
    return min(max(factor, 1 / MOST_FACTOR), MOST_FACTOR)


def figures(plan: Plan, spans: Iterable[Span]) -> Mapping[Key, Figure]:
    """What one step's spans say. Nothing of what they lack."""
    of_rank: dict[int, list[Span]] = {rank: [] for rank in range(plan.n_ranks)}
    for s in spans:
        if s.rank in of_rank:
            of_rank[s.rank].append(s)
    found: dict[Key, Figure] = {}
    for rank, own in of_rank.items():
        busy_s = sum(s.duration_s for s in own if s.kind in ("forward", "backward"))
        if busy_s > 0:
            found["device", rank, -1] = Figure(busy_s)
        if plan.stage_of(rank) + 1 < plan.n_stages:
            pair = _round_trip(rank, own, rank + 1, of_rank[rank + 1])
            if pair is not None:
                found["pipeline", rank, rank + 1] = pair
    for stage in range(plan.n_stages):
        group = plan.group(stage)
        reduced = {r: [s for s in of_rank[r] if s.kind == "reduce" and s.peer < 0] for r in group}
        if len(group) > 1 and all(reduced.values()):
            seconds = min(sum(s.duration_s for s in own) for own in reduced.values())
            n_bytes = max(sum(s.n_bytes for s in own) for own in reduced.values())
            ways = tuple((a, b, n_bytes // len(group)) for a in group for b in group if a != b)
            found["replicas", stage, -1] = Figure(seconds, ways)
    return found


def _round_trip(a: int, of_a: Sequence[Span], b: int, of_b: Sequence[Span]) -> Figure | None:
    """The soonest activation there and the soonest gradient back; None if either was not seen."""
    there, back = _soonest(of_a, b, of_b, "forward"), _soonest(of_b, a, of_a, "backward")
    if there is None or back is None:
        return None
    return Figure(there[0] + back[0], ((a, b, there[1]), (b, a, back[1])))


def _soonest(of_src: Sequence[Span], dst: int, of_dst: Sequence[Span], use: str) -> tuple[float, int] | None:
    """(seconds on two clocks from a hand-over to its use, bytes), of the micro-batch that was quickest."""
    used_s = {s.mb: s.start_s for s in of_dst if s.kind == use}
    ways = [
        (used_s[s.mb] - s.start_s, s.n_bytes)
        for s in of_src
        if s.kind == "send" and s.peer == dst and s.mb in used_s
    ]
    return min(ways, default=None)

"""Recorded links: what a network between places was over time, and questions about it.

A trace is sample-and-hold: a link is what its last row says, until its next one; before its first
row it is what the first says. Unknown is NaN here and None in a `LinkState`, never 0. Knows no file
(`scheduler.trace_text` is the format, `sim.trace` the folder of shipped ones), no plan, no clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite, isnan
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Pair = tuple[str, str]
"""(source, destination): links are directed."""

CONVENTIONS: Mapping[str, float] = {"paper": 1.0, "physical": 0.5}
"""One-way delay = factor x the recorded delay. `paper`: DT-FM adds its round trips whole, one way;
`physical`: half a round trip."""


EARTH_RADIUS_M = 6.371e6
FIBRE_MPS = 2.0e8
"""Light in glass: two thirds of its speed in a vacuum."""


class TraceError(ValueError):
    """A trace that cannot be: names file, line and column, what was found and what is required."""


@dataclass(frozen=True, slots=True)
class Node:
    """A place of a trace; positions in degrees, None if unknown."""

    name: str
    provider: str = ""
    region: str = ""
    latitude: float | None = None
    longitude: float | None = None
    n_devices: int = 1

    def light_s(self, other: Node) -> float:
        """The round trip of light in fibre along the great circle, in s; 0 if a position is unknown."""
        ends = (self.latitude, self.longitude, other.latitude, other.longitude)
        known = [np.radians(degrees) for degrees in ends if degrees is not None]
        if len(known) < 4:
            return 0.0
        a, b, c, d = known
        h = np.sin((c - a) / 2) ** 2 + np.cos(a) * np.cos(c) * np.sin((d - b) / 2) ** 2
        return float(4 * EARTH_RADIUS_M * np.arcsin(np.sqrt(min(h, 1.0))) / FIBRE_MPS)


@dataclass(frozen=True, slots=True)
class LinkState:
    """A directed link at a moment; None: the trace does not say."""

    rtt_s: float | None
    one_way_s: float | None
    """The round trip times the trace's factor."""
    bandwidth_Bps: float | None
    jitter_s: float | None = None
    loss: float | None = None
    """Share of packets that are lost, below 1."""


@dataclass(frozen=True, slots=True, eq=False)
class LinkSeries:
    """A directed link over time: arrays of one length, times ascending, NaN unknown."""

    times_s: Vector
    rtt_s: Vector
    bandwidth_Bps: Vector
    jitter_s: Vector
    loss: Vector

    def __len__(self) -> int:
        return len(self.times_s)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LinkSeries):
            return NotImplemented
        return all(
            np.array_equal(a, b, equal_nan=True) for a, b in zip(self.columns(), other.columns(), strict=True)
        )

    __hash__ = None  # type: ignore[assignment]  # arrays have none

    def columns(self) -> tuple[Vector, Vector, Vector, Vector, Vector]:
        """(times, rtt, bandwidth, jitter, loss)."""
        return self.times_s, self.rtt_s, self.bandwidth_Bps, self.jitter_s, self.loss

    def rows(self, index: NDArray[np.intp]) -> LinkSeries:
        """The series of the rows at `index`."""
        return LinkSeries(*(column[index] for column in self.columns()))

    def index_at(self, t_s: float) -> int:
        """Which row holds at `t_s`."""
        return max(int(np.searchsorted(self.times_s, t_s, side="right")) - 1, 0)


Row = tuple[float, float | None, float | None, float | None, float | None]
"""(time in s, rtt in s, bandwidth in bytes/s, jitter in s, loss) of a link; None is unknown."""


def series(rows: Iterable[Row]) -> LinkSeries:
    """A link's series from its rows. TraceError unless times ascend and the figures can be."""
    table = np.array([[np.nan if v is None else v for v in row] for row in rows], dtype=np.float64)
    if table.size == 0:
        raise TraceError("found a link without a row, required one or more")
    times = table[:, 0]
    if not np.isfinite(times).all() or times[0] < 0 or (np.diff(times) <= 0).any():
        raise TraceError("found times that do not ascend from 0 or more; required that of every link")
    if (
        np.isinf(table).any()
        or (table[:, 1:] < 0).any()
        or (table[:, 2] == 0).any()
        or (table[:, 4] >= 1).any()
    ):
        raise TraceError(
            "found a negative or infinite figure, a bandwidth of 0 or a loss of 1; "
            "required: None for unknown, and no row of a link that is not there"
        )
    return LinkSeries(*(np.ascontiguousarray(column) for column in table.T))


def steady(rtt_s: float | None, bandwidth_Bps: float | None) -> LinkSeries:
    """A link that stays as it is."""
    return series([(0.0, rtt_s, bandwidth_Bps, None, None)])


@dataclass(frozen=True, slots=True)
class About:
    """What the figures are and where they come from: a trace's json, units turned into SI."""

    one_way_factor: float | None = None
    """One-way delay = factor x rtt; None only where no round trip is known."""
    latency_kind: str = ""
    """What `rtt` is: application level, ICMP, a median over how long."""
    bw_kind: str = ""
    """What the bandwidth is of: one flow, an aggregate of n flows, contended, an egress cap."""
    within_rtt_s: float | None = None
    within_bandwidth_Bps: float | None = None
    """The link between two devices of one node."""
    step_s: float | None = None
    """Seconds between two samples, where they were taken at a fixed step."""
    start: str = ""
    """When t = 0 was, as ISO 8601."""
    source: str = ""
    licence: str = ""
    date: str = ""
    caveats: str = ""
    other: Mapping[str, Any] = field(default_factory=dict)
    """Further keys of the json, kept as they are."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Links between nodes over time."""

    name: str
    nodes: dict[str, Node]
    links: dict[Pair, LinkSeries]
    about: About = field(default_factory=About)

    @property
    def duration_s(self) -> float:
        """The time of the last change."""
        return max((float(link.times_s[-1]) for link in self.links.values()), default=0.0)

    @property
    def positions(self) -> dict[str, tuple[float, float]]:
        """(latitude, longitude) in degrees of the nodes whose place is known."""
        return {
            n.name: (n.latitude, n.longitude)
            for n in self.nodes.values()
            if n.latitude is not None and n.longitude is not None
        }

    @property
    def n_rows(self) -> int:
        return sum(len(link) for link in self.links.values())

    def at(self, t_s: float, src: str, dst: str) -> LinkState:
        """The link at `t_s`. KeyError for a pair the trace does not have."""
        link = self.links[src, dst]
        i = link.index_at(t_s)
        rtt_s = _known(link.rtt_s[i])
        factor = self.about.one_way_factor
        one_way_s = None if rtt_s is None or factor is None else rtt_s * factor
        return LinkState(
            rtt_s, one_way_s, _known(link.bandwidth_Bps[i]), _known(link.jitter_s[i]), _known(link.loss[i])
        )

    def change_times_s(self) -> Vector:
        """Every time at which some link changes, ascending, each once."""
        return np.unique(np.concatenate([link.times_s for link in self.links.values()]))

    def under(self, convention: str) -> Trace:
        """The same figures, one-way delays by `convention`, one of CONVENTIONS. TraceError for another."""
        if convention not in CONVENTIONS:
            raise TraceError(
                f"found the delay convention {convention!r}, required {' or '.join(CONVENTIONS)}"
            )
        return replace(self, about=replace(self.about, one_way_factor=CONVENTIONS[convention]))

    def subset(self, names: Sequence[str]) -> Trace:
        """Only the nodes `names`, in that order, and the links between them."""
        unknown = [n for n in names if n not in self.nodes]
        if unknown or len(set(names)) != len(names) or not names:
            found = f"the unknown {', '.join(unknown)}" if unknown else f"{', '.join(names) or 'none'}"
            raise TraceError(
                f"{self.name}: nodes: found {found}; required different ones of: {', '.join(self.nodes)}"
            )
        links = {pair: link for pair, link in self.links.items() if pair[0] in names and pair[1] in names}
        return replace(self, nodes={n: self.nodes[n] for n in names}, links=links)

    def window(self, start_s: float, stop_s: float) -> Trace:
        """What happened in [start_s, stop_s), with time counted from `start_s`."""
        if not (isfinite(start_s) and 0 <= start_s < stop_s):
            raise TraceError(f"found the window {start_s:g} to {stop_s:g} s, required 0 <= start < stop")

        def cut(link: LinkSeries) -> LinkSeries:
            first = link.index_at(start_s)
            stop = max(int(np.searchsorted(link.times_s, stop_s, side="left")), first + 1)
            kept = link.rows(np.arange(first, stop))
            return replace(kept, times_s=np.concatenate([[0.0], kept.times_s[1:] - start_s]))

        return replace(self, links={pair: cut(link) for pair, link in self.links.items()})

    def resampled(self, step_s: float) -> Trace:
        """Changes only at multiples of `step_s`: there the new trace is what the old one is."""
        if not (isfinite(step_s) and step_s > 0):
            raise TraceError(f"found a step of {step_s} s, required more than 0")
        links = {pair: _resampled(link, step_s) for pair, link in self.links.items()}
        return replace(self, links=links, about=replace(self.about, step_s=step_s))


def _known(value: np.float64) -> float | None:
    return None if isnan(value) else float(value)


def _resampled(link: LinkSeries, step_s: float) -> LinkSeries:
    """Each row counts from the first multiple of the step at or after it; of several there, the last."""
    tick = np.ceil(link.times_s / step_s)
    tick = np.where((tick - 1) * step_s >= link.times_s, tick - 1, tick)
    tick = np.where(tick * step_s < link.times_s, tick + 1, tick)
    last = np.append(tick[1:] != tick[:-1], True)
    index = np.flatnonzero(last)
    times_s = tick[index] * step_s
    if index[0] != 0:  # several rows before one tick: earlier ticks have the first of them
        index, times_s = np.insert(index, 0, 0), np.insert(times_s, 0, (tick[0] - 1) * step_s)
    kept = replace(link.rows(index), times_s=times_s)
    table = np.stack(kept.columns()[1:])
    same = (table[:, 1:] == table[:, :-1]) | (np.isnan(table[:, 1:]) & np.isnan(table[:, :-1]))
    changed = np.append(True, ~same.all(axis=0))
    return kept.rows(np.flatnonzero(changed))


@dataclass(frozen=True, slots=True)
class LinkMatrices:
    """All links at a moment: entry [i, j] is the link from node i to node j; NaN unknown or not there.

    The diagonal is the link between two devices of one node.
    """

    rtt_s: Vector
    one_way_s: Vector
    bandwidth_Bps: Vector
    jitter_s: Vector
    loss: Vector


class Sampler:
    """Answers `at(t_s)` for all links at once; built once for a trace, in the order of its nodes."""

    def __init__(self, trace: Trace) -> None:
        self.names = tuple(trace.nodes)
        place = {name: k for k, name in enumerate(self.names)}
        self._src = np.array([place[a] for a, _ in trace.links], dtype=np.intp)
        self._dst = np.array([place[b] for _, b in trace.links], dtype=np.intp)
        lengths = [len(link) for link in trace.links.values()]
        self._first = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.intp)
        self._times_s, *self._columns = (
            np.concatenate(column)
            for column in zip(*(link.columns() for link in trace.links.values()), strict=True)
        )
        self._about = trace.about

    def at(self, t_s: float) -> LinkMatrices:
        """Matrices of (nodes, nodes) at `t_s`."""
        passed = np.add.reduceat((self._times_s <= t_s).astype(np.intp), self._first)
        row = self._first + np.maximum(passed - 1, 0)
        n = len(self.names)
        within = (self._about.within_rtt_s, self._about.within_bandwidth_Bps, None, None)
        matrices = []
        for column, own in zip(self._columns, within, strict=True):
            matrix = np.full((n, n), np.nan)
            matrix[self._src, self._dst] = column[row]
            np.fill_diagonal(matrix, np.nan if own is None else own)
            matrices.append(matrix)
        rtt_s, bandwidth_Bps, jitter_s, loss = matrices
        factor = self._about.one_way_factor
        one_way_s = rtt_s * (np.nan if factor is None else factor)
        return LinkMatrices(rtt_s, one_way_s, bandwidth_Bps, jitter_s, loss)

"""Spans and timelines: what happened when, whether on a real clock or a simulated one.

Worker and simulator write the same thing, so predicted and measured can be subtracted.
Knows nothing of plans, devices or where the times come from.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Literal

SpanKind = Literal["forward", "backward", "wait", "send", "reduce", "optimizer", "encode", "decode"]

COMPUTE: frozenset[SpanKind] = frozenset({"forward", "backward", "optimizer"})
"""Kinds that keep the rank's own thread busy."""

BESIDE: tuple[SpanKind, ...] = ("send", "encode", "decode")
"""Kinds that run beside it, and may overlap it and each other."""


@dataclass(frozen=True, slots=True)
class Span:
    """One timed action of one rank. `wait`: the rank is idle until an input is there.

    `send` spans run on the link beside compute: from the hand-over to the last byte's arrival (simulator)
    or leaving (worker); `encode` and `decode` beside it on the same device. Times count from the start of
    the step. `peer` is whom the span sends to, waits for or reduces with; -1: nobody, or several.
    """

    rank: int
    kind: SpanKind
    start_s: float
    end_s: float
    mb: int = -1
    peer: int = -1
    n_bytes: int = 0

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s


@dataclass(frozen=True, slots=True)
class Timeline:
    """All spans of one step over `n_ranks` ranks."""

    n_ranks: int
    spans: tuple[Span, ...]

    @property
    def duration_s(self) -> float:
        """From 0 to the end of the last span."""
        return max((s.end_s for s in self.spans), default=0.0)


@dataclass(frozen=True, slots=True)
class RankUse:
    """How one rank spent the step; the four add up to the step's duration. Sends and codecs run beside."""

    busy_s: float
    """Computing."""
    wait_s: float
    reduce_s: float
    idle_s: float
    """In no span: after the rank's last action, or what the recorder did not see."""


def use_by_rank(timeline: Timeline) -> tuple[RankUse, ...]:
    """What each rank did with the step, in rank order."""
    busy, wait, reduce = ([0.0] * timeline.n_ranks for _ in range(3))
    for s in timeline.spans:
        if s.kind in COMPUTE:
            busy[s.rank] += s.duration_s
        elif s.kind == "wait":
            wait[s.rank] += s.duration_s
        elif s.kind == "reduce":
            reduce[s.rank] += s.duration_s
    total = timeline.duration_s
    return tuple(
        RankUse(b, w, r, max(0.0, total - b - w - r)) for b, w, r in zip(busy, wait, reduce, strict=True)
    )


def bubble_fraction(timeline: Timeline) -> float:
    """Share of all ranks' time in which nothing is computed: 1 - Σ busy / (ranks x duration); 0 if empty.

    With equal stages, free links and no optimizer: (S - 1) / (M + S - 1).
    """
    whole = timeline.n_ranks * timeline.duration_s
    return 1.0 - sum(u.busy_s for u in use_by_rank(timeline)) / whole if whole > 0 else 0.0


def critical_path(timeline: Timeline) -> tuple[Span, ...]:
    """The chain of spans that made the step as long as it was, earliest first.

    Walks back from the span that ended last: before a span comes what its rank did until then; before a
    send its encoding, before a decoding the send; a wait is replaced by the decoding or the send that
    ended it, or, where neither did (a reduction, the norm), by what the awaited peer did. A wait whose
    cause is not recorded stays in the path.
    """
    lanes = _Lanes(timeline)
    ends = [s for s in timeline.spans if s.kind != "wait" and s.kind not in BESIDE]
    current = max(ends, key=lambda s: (s.end_s, s.start_s, -s.rank), default=None)
    path: list[Span] = []
    seen: set[int] = set()  # a recorder's clock may make zero-length cycles
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        path.append(current)
        current = lanes.cause(current)
    return tuple(reversed(path))


class _Lanes:
    """Finds what came before a span."""

    def __init__(self, timeline: Timeline) -> None:
        self._slack_s = 1e-9 * max(timeline.duration_s, 1e-6)  # rounding of times that are equal
        self._own: dict[int, list[Span]] = defaultdict(list)
        self._beside: dict[tuple[SpanKind, int, int, int], list[Span]] = defaultdict(list)
        """By (kind, rank, peer, micro-batch), in the order of their ends: several, where keys are sent."""
        for s in sorted(timeline.spans, key=lambda s: (s.end_s, s.start_s)):
            if s.kind in BESIDE:
                self._beside[s.kind, s.rank, s.peer, s.mb].append(s)
            else:
                self._own[s.rank].append(s)
        self._ends = {rank: [s.end_s for s in spans] for rank, spans in self._own.items()}

    def cause(self, span: Span) -> Span | None:
        match span.kind:
            case "decode":
                return self._sent(span, span.start_s) or self._before(span.rank, span.start_s, span)
            case "send":
                encoded = self._last("encode", span.rank, span.peer, span.mb, span.start_s)
                if encoded is not None:
                    return encoded
        before = self._before(span.rank, span.start_s, span)
        return before if before is None or before.kind != "wait" else self._ended(before)

    def _ended(self, wait: Span) -> Span:
        """What a wait was for."""
        decoded = self._last("decode", wait.rank, wait.peer, wait.mb, wait.end_s) if wait.mb >= 0 else None
        if decoded is not None and wait.start_s < decoded.end_s:
            return decoded
        sent = self._sent(wait, wait.end_s)
        if sent is not None:
            return sent
        awaited = self._before(wait.peer, wait.end_s, wait, waits=False) if wait.peer >= 0 else None
        return awaited or wait

    def _sent(self, span: Span, by_s: float) -> Span | None:
        """The send by which came what `span` waits for or decodes."""
        if span.mb < 0:
            return None
        sends = self._beside.get(("send", span.peer, span.rank, span.mb), [])
        return self._last("send", span.peer, span.rank, span.mb, by_s) or next(iter(sends), None)

    def _last(self, kind: SpanKind, rank: int, peer: int, mb: int, by_s: float) -> Span | None:
        """The last such span that had ended by `by_s`."""
        ended = (
            s
            for s in reversed(self._beside.get((kind, rank, peer, mb), []))
            if s.end_s <= by_s + self._slack_s
        )
        return next(ended, None)

    def _before(self, rank: int, time_s: float, not_this: Span, waits: bool = True) -> Span | None:
        """The last span of `rank` that had ended by `time_s`."""
        own = self._own.get(rank, [])
        i = bisect_right(self._ends.get(rank, []), time_s + self._slack_s)
        for span in reversed(own[:i]):
            if span is not not_this and span.start_s <= time_s and (waits or span.kind != "wait"):
                return span
        return None


@dataclass(frozen=True, slots=True)
class SpanDifference:
    """The same span in two timelines; positive: the measured one is later, or longer."""

    predicted: Span
    measured: Span

    @property
    def start_s(self) -> float:
        return self.measured.start_s - self.predicted.start_s

    @property
    def duration_s(self) -> float:
        return self.measured.duration_s - self.predicted.duration_s


@dataclass(frozen=True, slots=True)
class Difference:
    """Two timelines, span by span. Waits that happen in one only are natural: see `only_*`."""

    duration_s: float
    """Measured step minus predicted."""
    matched: tuple[SpanDifference, ...]
    only_predicted: tuple[Span, ...]
    only_measured: tuple[Span, ...]

    def by_kind(self) -> dict[SpanKind, tuple[float, float]]:
        """Seconds (predicted, measured) of every kind of span, summed over all ranks."""
        total: dict[SpanKind, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for s in (*(m.predicted for m in self.matched), *self.only_predicted):
            total[s.kind][0] += s.duration_s
        for s in (*(m.measured for m in self.matched), *self.only_measured):
            total[s.kind][1] += s.duration_s
        return {kind: (p, m) for kind, (p, m) in sorted(total.items())}


_Key = tuple[int, SpanKind, int, int]


def difference(predicted: Timeline, measured: Timeline) -> Difference:
    """Match spans by (rank, kind, micro-batch, peer); several of one key in order of their start."""
    theirs: dict[_Key, list[Span]] = defaultdict(list)
    for s in sorted(measured.spans, key=lambda s: -s.start_s):
        theirs[_key(s)].append(s)
    matched: list[SpanDifference] = []
    only_predicted: list[Span] = []
    for s in sorted(predicted.spans, key=lambda s: s.start_s):
        same = theirs[_key(s)]
        if same:
            matched.append(SpanDifference(s, same.pop()))
        else:
            only_predicted.append(s)
    left = sorted((s for spans in theirs.values() for s in spans), key=lambda s: (s.start_s, s.rank))
    return Difference(
        measured.duration_s - predicted.duration_s, tuple(matched), tuple(only_predicted), tuple(left)
    )


def _key(s: Span) -> _Key:
    return s.rank, s.kind, s.mb, s.peer


def chrome_trace(timeline: Timeline, names: tuple[str, ...] = ()) -> dict[str, Any]:
    """The timeline in the Trace Event Format (chrome://tracing, Perfetto): a process a rank.

    `names[rank]` labels the processes. What runs beside a rank may overlap, so sends and codecs are
    asynchronous events (`b`, `e`), everything else complete ones (`X`). Times become microseconds.
    """
    events: list[dict[str, Any]] = []
    for rank in range(timeline.n_ranks):
        label = f"rank {rank} {names[rank]}" if rank < len(names) else f"rank {rank}"
        events.append({"ph": "M", "name": "process_name", "pid": rank, "tid": 0, "args": {"name": label}})
        events.append(
            {"ph": "M", "name": "process_sort_index", "pid": rank, "tid": 0, "args": {"sort_index": rank}}
        )
    for i, s in enumerate(timeline.spans):
        name = s.kind if s.mb < 0 else f"{s.kind} {s.mb}"
        args = {"mb": s.mb, "peer": s.peer, "n_bytes": s.n_bytes}
        event = {"name": name, "cat": s.kind, "pid": s.rank, "tid": 0, "ts": s.start_s * 1e6, "args": args}
        if s.kind in BESIDE:
            event["name"] = f"{name} {'from' if s.kind == 'decode' else 'to'} {s.peer}"
            events.append({**event, "ph": "b", "id": i})
            events.append({**event, "ph": "e", "id": i, "ts": s.end_s * 1e6})
        else:
            events.append({**event, "ph": "X", "dur": s.duration_s * 1e6})
    return {"traceEvents": events, "displayTimeUnit": "ms"}

"""Proves that a schedule can run, and draws it. Knows only the order of actions, no durations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from scheduler.actions import (
    Action,
    Actions,
    Backward,
    FinishOuterStep,
    Forward,
    Kind,
    OptimizerStep,
    Recv,
    ReduceGradients,
    ScheduleError,
    Send,
    StartOuterStep,
    label,
)


def check(actions_by_rank: Mapping[int, Actions]) -> None:
    """Prove that a step can run: every Recv has its one Send, uses follow makings, nobody waits for ever.

    Knows no groups: it takes reductions as local. Raises ScheduleError with the schedule's grid,
    the cell that fails in brackets.
    """
    fault = _local_fault(actions_by_rank) or _pairing_fault(actions_by_rank)
    if fault is not None:
        rank, index, reason = fault
        marked = grid(actions_by_rank, mark=(rank, index))
        raise ScheduleError(
            f"rank {rank}, action {index}, {label(actions_by_rank[rank][index])}: {reason}\n{marked}"
        )
    walk = _walk(actions_by_rank)
    stuck = {r: i for r, i in walk.next_action.items() if i < len(actions_by_rank[r])}
    if stuck:
        rank, index = next(iter(stuck.items()))
        waits = ", ".join(f"rank {r} for {label(actions_by_rank[r][i])}" for r, i in stuck.items())
        raise ScheduleError(
            f"deadlock, these wait for ever: {waits}\n{grid(actions_by_rank, mark=(rank, index))}"
        )


def grid(actions_by_rank: Mapping[int, Actions], mark: tuple[int, int] | None = None) -> str:
    """The schedule as text: a row a rank, a column a slot in which each rank computes at most once.

    F, B: forward, backward of a micro-batch; R, O: reduce, optimizer; `.`: nothing to do yet.
    A tensor sent in one slot can be used in the next. `mark` = (rank, index of an action): its
    cell stands in brackets; a rank that cannot go on ends with the action it waits for.
    """
    walk = _walk(actions_by_rank)
    rows: dict[int, list[str]] = {}
    for rank, cells in walk.cells.items():
        row = [f"[{c.text}]" if mark and mark[0] == rank and mark[1] in c.covers else c.text for c in cells]
        stop = walk.next_action[rank]
        if stop < len(actions_by_rank[rank]):
            text = label(actions_by_rank[rank][stop])
            row.append(f"[{text}]" if mark and mark[0] == rank and mark[1] >= stop else text)
        rows[rank] = row
    n_slots = max((len(row) for row in rows.values()), default=0)
    width = [max((len(row[i]) for row in rows.values() if i < len(row)), default=1) for i in range(n_slots)]
    head = max((len(str(rank)) for rank in rows), default=1)
    return "\n".join(
        f"rank {rank:>{head}} | " + " ".join(f"{cell:<{width[i]}}" for i, cell in enumerate(row)).rstrip()
        for rank, row in rows.items()
    )


@dataclass(frozen=True, slots=True)
class _Cell:
    text: str
    covers: range
    """Indices of the actions that happen in this cell."""


@dataclass(slots=True)
class _Walk:
    cells: dict[int, list[_Cell]] = field(default_factory=dict)
    next_action: dict[int, int] = field(default_factory=dict)
    """Where each rank stopped: the length of its actions if it ran to the end."""


_Tensor = tuple[Kind, int, int, int]
"""kind, micro-batch, source, destination."""


def _walk(actions_by_rank: Mapping[int, Actions]) -> _Walk:
    """Run all ranks in lock step until none can go on."""
    walk = _Walk({r: [] for r in actions_by_rank}, dict.fromkeys(actions_by_rank, 0))
    arrived: set[_Tensor] = set()
    moved = True
    while moved:
        moved = False
        under_way: set[_Tensor] = set()
        for rank, actions in actions_by_rank.items():
            start = walk.next_action[rank]
            stop, text = _slot(rank, actions, start, arrived, under_way)
            walk.next_action[rank] = stop
            moved = moved or stop > start
            if start < len(actions):
                walk.cells[rank].append(_Cell(text, range(start, stop)))
        arrived |= under_way
    for cells in walk.cells.values():
        while cells and not cells[-1].covers:  # a stuck rank's row ends where it stopped
            cells.pop()
    return walk


def _slot(
    rank: int, actions: Actions, i: int, arrived: set[_Tensor], under_way: set[_Tensor]
) -> tuple[int, str]:
    """Do receives, at most one computation, and the sends after it; where that ends and what was computed."""
    text = "."
    while i < len(actions):
        action = actions[i]
        if isinstance(action, Recv):
            if text != "." or (action.kind, action.mb, action.src, rank) not in arrived:
                break
        elif isinstance(action, Send):
            under_way.add((action.kind, action.mb, rank, action.dst))
        elif text != ".":
            break
        else:
            text = label(action)
        i += 1
    return i, text


_Fault = tuple[int, int, str]
"""rank, index of the action, what is wrong with it."""


def _pairing_fault(actions_by_rank: Mapping[int, Actions]) -> _Fault | None:
    sent: Counter[_Tensor] = Counter()
    received: Counter[_Tensor] = Counter()
    where: list[tuple[_Tensor, bool, int, int]] = []
    for rank, actions in actions_by_rank.items():
        for i, action in enumerate(actions):
            if isinstance(action, Send):
                tensor = (action.kind, action.mb, rank, action.dst)
                sent[tensor] += 1
                where.append((tensor, True, rank, i))
            elif isinstance(action, Recv):
                tensor = (action.kind, action.mb, action.src, rank)
                received[tensor] += 1
                where.append((tensor, False, rank, i))
    for tensor, is_send, rank, i in where:
        if sent[tensor] == received[tensor] == 1:
            continue
        src, dst = tensor[2], tensor[3]
        other = (
            f"rank {dst} receives it {received[tensor]} times"
            if is_send
            else f"rank {src} sends it {sent[tensor]} times"
        )
        own = f"{sent[tensor]} such sends" if is_send else f"{received[tensor]} such receives"
        return rank, i, f"found {own} and {other}; required one of each"
    return None


def _local_fault(actions_by_rank: Mapping[int, Actions]) -> _Fault | None:
    """The first action of a rank that uses what the rank has not made or got, or makes it twice."""
    for rank, actions in actions_by_rank.items():
        forwards = {a.mb for a in actions if isinstance(a, Forward)}
        last = {type(a): i for i, a in enumerate(actions)}
        done: set[Action] = set()
        got = {(a.kind, a.mb) for a in actions if isinstance(a, Recv)}
        had: set[tuple[Kind, int]] = set()
        for i, action in enumerate(actions):
            match action:
                case Recv(kind, mb, _):
                    had.add((kind, mb))
                case Forward(mb) if ("activation", mb) in got - had:
                    return rank, i, "its activation is received only later"
                case Backward(mb) if Forward(mb) not in done:
                    return rank, i, "comes before the forward of its micro-batch"
                case Backward(mb) if ("gradient", mb) in got - had:
                    return rank, i, "its gradient is received only later"
                case Send("activation", mb, _) if Forward(mb) not in done:
                    return rank, i, "comes before the forward that makes it"
                case Send("gradient", mb, _) if Backward(mb) not in done:
                    return rank, i, "comes before the backward that makes it"
                case ReduceGradients() if i < last.get(Backward, -1):
                    return rank, i, "comes before the last backward"
                case OptimizerStep() if i < last.get(ReduceGradients, -1):
                    return rank, i, "comes before the gradients are reduced"
                case OptimizerStep() if i < last.get(FinishOuterStep, -1):
                    return rank, i, "comes before the piece that it applies is there"
                case FinishOuterStep() if StartOuterStep() not in done:
                    return rank, i, "waits for a piece that was not sent"
            if isinstance(action, Forward | Backward) and action in done:
                return rank, i, "happens twice"
            done.add(action)
        missing = sorted(mb for mb in forwards if Backward(mb) not in done)
        if missing:
            i = next(i for i, a in enumerate(actions) if a == Forward(missing[0]))
            return rank, i, "has no backward"
    return None

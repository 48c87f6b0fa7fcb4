"""What changes of a run's state are told as events: pure, so that what is told can be tested without a run.

How events are shown, and where they are kept, is the driver's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from . import events as e
from .records import OVER, State

Told = tuple[str, dict[str, Any]]
"""An event's kind and its fields."""


def changes(before: State, now: State, event: e.Event, reason: str) -> Iterator[Told]:
    """What `event` changed, for this reason, that somebody should hear of."""
    if now.phase != before.phase and now.phase not in OVER:
        yield "phase", {"phase": now.phase, "reason": now.reason, "step": now.done}
    yield from _following(before, now, reason)
    if before.phase == "loading" and now.phase == "running" and before.ran is not None:
        stood_s = now.progress_s - before.progress_s  # from the last commit to the first step's beginning
        yield "pause", {"seconds": stood_s, "step": now.done, "followed": _followed(before)}
    match event:
        case e.Connected(worker) if worker in now.members:
            member = now.members[worker]
            yield (
                "joined",
                {
                    "name": worker,
                    "region": member.device.region,
                    "host": member.device.host,
                    "memory_bytes": member.device.memory_bytes,
                    "data_address": member.peer.data_address,
                    "members": len(now.connected),
                    "needed": now.options.min_workers,
                },
            )
        case e.SaveFailed() | e.Failed() | e.Drain() if now.phase not in OVER or reason != now.reason:
            yield "warning", {"reason": reason}
        case e.Saved() if now.save_failed_at != before.save_failed_at:
            yield "warning", {"reason": reason}
        case _:
            pass


def _following(before: State, now: State, reason: str) -> Iterator[Told]:
    """Layers begin to travel beside the steps, or do not any more."""
    was, ahead = before.ahead, now.ahead
    if ahead is not None and (was is None or was.version != ahead.version):
        f = ahead.following
        yield (
            "following",
            {
                "step": now.done,
                "followers": list(f.followers),
                "steps": f.steps,
                "pause_s": f.pause_s,
                "loading_s": f.loading_s,
                "reason": f.reason,
            },
        )
    elif was is not None and ahead is None and now.phase != "loading" and now.phase not in OVER:
        yield "unfollowed", {"step": now.done, "reason": reason}


def _followed(loading: State) -> int:
    """Layers that ranks had followed before they took the plan that is being loaded."""
    if loading.plan is None or loading.ran is None:
        return 0
    found = 0
    for rank in range(loading.plan.n_ranks):
        name = loading.plan.device(rank)
        held = loading.held[name].layers if name in loading.held else frozenset()
        ran = loading.ran.rank_of_device(name)
        own = range(0) if ran is None else range(*loading.ran.partition[loading.ran.stage_of(ran)])
        wanted = range(*loading.plan.partition[loading.plan.stage_of(rank)])
        found += sum(x in held and x not in own for x in wanted)
    return found

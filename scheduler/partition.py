"""Layers -> stages: the contiguous cut whose slowest stage is fastest, within every device's memory.

Exact, by dynamic programming over (stages in order, layers). Embedding and head are layers like
any other. Knows no links: all boundaries of a transformer carry the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from scheduler.cost import stage_memory, stage_memory_bytes
from scheduler.plan import PlanError
from scheduler.profile import DeviceProfile, ModelProfile
from scheduler.units import count, size

Floats = NDArray[np.float64]
Partition = tuple[tuple[int, int], ...]
"""(first layer, one past the last) of every stage."""


class DoesNotFit(PlanError):
    """No cut fits in memory. `missing_bytes` lack on `device` in the cut that lacks least."""

    def __init__(self, device: str, stage: int, needed_bytes: int, memory_bytes: int, n_stages: int) -> None:
        self.device, self.stage = device, stage
        self.needed_bytes, self.memory_bytes = needed_bytes, memory_bytes
        self.missing_bytes = needed_bytes - memory_bytes
        super().__init__(
            f"no cut into {count(n_stages, 'stage')} fits: the one that lacks least needs "
            f"{size(needed_bytes)} on {device} (stage {stage}), which has {size(memory_bytes)}: "
            f"{size(self.missing_bytes)} are missing; use more stages, a smaller micro_batch, "
            "or a device with more memory"
        )


def partition(
    model: ModelProfile,
    stages: Sequence[Sequence[DeviceProfile]],
    memory_bytes: Mapping[str, int],
    in_flight: Sequence[int],
) -> Partition:
    """Cut the layers: `stages[s]` are the devices that hold the replicas of stage s.

    A stage takes as long as its slowest device's forward + backward, and must fit the smallest;
    `memory_bytes` by device, 0 or absent: unknown, taken as enough. `in_flight[s]`: micro-batches
    saved at once. Among cuts with the same slowest stage the most even one (least Σ seconds²).
    Raises PlanError for more stages than layers, DoesNotFit.
    """
    n_layers, n_stages = len(model.layers), len(stages)
    if not 1 <= n_stages <= n_layers:
        raise PlanError(f"found {n_stages} stages for {n_layers} layers, required 1 to {n_layers}")
    seconds = [_range_seconds(devices) for devices in stages]
    excess = [
        _range_excess(model, [memory_bytes.get(p.device, 0) for p in devices], in_flight[s])
        for s, devices in enumerate(stages)
    ]
    fits = [np.where(over <= 0, time, np.inf) for over, time in zip(excess, seconds, strict=True)]
    slowest_s, _ = _cut(fits, np.maximum)
    if not np.isfinite(slowest_s):
        raise _what_lacks(model, stages, memory_bytes, in_flight, excess)
    within = slowest_s * (1 + 1e-12)
    even = [np.where(time <= within, time * time, np.inf) for time in fits]
    return _cut(even, np.add)[1]


def _range_seconds(devices: Sequence[DeviceProfile]) -> Floats:
    """[i, j]: forward + backward of layers i .. j - 1 on the slowest of `devices`; inf where j <= i."""
    ranges = []
    for p in devices:
        upto = np.concatenate([[0.0], np.cumsum(np.add(p.forward_s, p.backward_s))])
        ranges.append(upto[None, :] - upto[:, None])
    slowest: Floats = np.max(ranges, axis=0)
    return np.where(np.triu(np.ones(slowest.shape, dtype=bool), 1), slowest, np.inf)


def _range_excess(model: ModelProfile, memory_bytes: Sequence[int], in_flight: int) -> Floats:
    """[i, j]: bytes that layers i .. j - 1 need beyond the smallest device's memory (0 or less: they fit)."""
    known = [m for m in memory_bytes if m > 0]
    fixed, saved = _range_memory(model)
    if not known:
        return np.where(np.isfinite(fixed), -np.inf, np.inf)
    excess: Floats = fixed + in_flight * saved - min(known)
    return excess


@lru_cache(maxsize=8)
def _range_memory(model: ModelProfile) -> tuple[Floats, Floats]:
    """[i, j] of what layers i .. j - 1 need: (always, once more for each micro-batch in flight)."""
    n = len(model.layers)
    fixed, saved = np.full((n + 1, n + 1), np.inf), np.zeros((n + 1, n + 1))
    for i in range(n):
        for j in range(i + 1, n + 1):
            memory = stage_memory(model, i, j)
            fixed[i, j], saved[i, j] = memory.total_bytes(0), memory.saved_bytes
    return fixed, saved


def _cut(cost: Sequence[Floats], join: np.ufunc) -> tuple[float, Partition]:
    """The cut with the least joined cost (`np.maximum`: of the worst stage, `np.add`: of all).

    best[j] is the least cost of giving the first j layers to the stages so far; `cost[s][i, j]`
    is what stage s pays for layers i .. j - 1.
    """
    n_layers = cost[0].shape[0] - 1
    best = cost[0][0]
    froms: list[NDArray[np.intp]] = []
    for stage_cost in cost[1:]:
        paid = join(best[:, None], stage_cost)
        froms.append(np.argmin(paid, axis=0))
        best = paid[froms[-1], np.arange(n_layers + 1)]
    ends = [n_layers]
    for choice in reversed(froms):
        ends.append(int(choice[ends[-1]]))
    starts = [0, *ends[:0:-1]]
    return float(best[n_layers]), tuple(zip(starts, ends[::-1], strict=True))


def _what_lacks(
    model: ModelProfile,
    stages: Sequence[Sequence[DeviceProfile]],
    memory_bytes: Mapping[str, int],
    in_flight: Sequence[int],
    excess: Sequence[Floats],
) -> DoesNotFit:
    """The cut whose worst stage lacks least, as an error."""
    _, cut = _cut(excess, np.maximum)
    over = [float(excess[s][a, b]) for s, (a, b) in enumerate(cut)]
    stage = max(range(len(cut)), key=over.__getitem__)
    known = [
        (memory_bytes.get(p.device, 0), p.device) for p in stages[stage] if memory_bytes.get(p.device, 0) > 0
    ]
    has_bytes, device = min(known)
    needed = stage_memory_bytes(model, *cut[stage], in_flight[stage])
    return DoesNotFit(device, stage, needed, has_bytes, len(cut))

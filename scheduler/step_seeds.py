"""The structured layouts that the search for the step time starts from: rows dealt to stages.

Rows put near devices side by side, or fast ones first; a window of a row is what takes part. Knows
links, speeds and regions; prices nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from scheduler.alike import kinds_of
from scheduler.encoding import near_order
from scheduler.step_kernels import Floats, Ints
from scheduler.step_time import Pricing

WINDOWS = 6
"""Windows of a row that are tried where not every device takes part, spread over the regions' beginnings."""


@dataclass(frozen=True, slots=True)
class Grounds:
    """What the seeds of every shape are made from."""

    kinds: Ints
    """[N]: interchangeable devices share a number."""
    places: Ints
    """[N]: a number for each device's region."""
    speeds: Floats
    """[N]: seconds of the whole model for one micro-batch, forward and backward."""
    rows: tuple[tuple[str, Ints], ...]
    """Named orders of all devices."""

    @property
    def unlike(self) -> bool:
        """Whether devices differ in speed."""
        return bool(self.speeds.max() > self.speeds.min() * (1 + 1e-9))


def grounds_of(pricing: Pricing, regions: Sequence[str]) -> Grounds:
    """`regions`: of each device, '' where not known."""
    p = pricing.prices
    coding = np.concatenate([*p.activation_codec_s, *p.gradient_codec_s, *p.reduce_codec_s], axis=1)
    traits = np.column_stack([p.forward_s, p.backward_s, p.optimizer_s, p.memory_bytes, coding])
    codecs = [c.astype(np.float64) for c in (p.activation_codec, p.gradient_codec, p.reduce_codec) if c.any()]
    kinds = kinds_of([p.latency_s, p.bandwidth_Bps, *codecs], traits)
    if any(regions):
        known = {name: k for k, name in enumerate(dict.fromkeys(regions))}
        places = np.array([known[name] for name in regions], dtype=np.int64)
    else:
        places = kinds
    speeds = p.forward_s[:, -1] + p.backward_s[:, -1]
    rows = []
    crossing, summed = p.activation_bytes.max(axis=1), p.reduce_bytes[:, 0, -1]
    for by, n_bytes in (
        ("activations", crossing[p.activation_codec]),
        ("gradients", summed[p.reduce_codec]),
    ):
        pair_s = p.latency_s + n_bytes / p.bandwidth_Bps
        np.fill_diagonal(pair_s, 0.0)
        rows.append((f"near by {by}", near_order(pair_s, places)))
    if speeds.max() > speeds.min() * (1 + 1e-9):
        near = rows[0][1]
        rows.append(("fastest first", near[np.argsort(speeds[near], kind="stable")]))
    return Grounds(kinds, places, speeds, tuple(rows))


def seeds(grounds: Grounds, n_stages: int, n_replicas: int) -> Iterator[tuple[str, Ints]]:
    """Named placements [R, S], none twice.

    A window of a row is cut into m cells of whole stages, and each cell's devices are dealt to its stages
    in turn. m = 1: every pipeline is a run of the row. m = stages: replicas stand side by side.
    Where devices differ in speed, windows are also dealt with their fastest first.
    """
    n = n_stages * n_replicas
    seen: set[bytes] = set()
    for row_name, row in grounds.rows:
        for window in _windows(grounds, row, n):
            orders = [(row_name, window)]
            if grounds.unlike:
                orders.append(
                    (f"{row_name}, by speed", window[np.argsort(grounds.speeds[window], kind="stable")])
                )
            for name, order in orders:
                for m in (m for m in range(1, n_stages + 1) if n_stages % m == 0):
                    per = n_stages // m
                    cells = order.reshape(m, n_replicas, per).transpose(1, 0, 2).reshape(n_replicas, n_stages)
                    mark = grounds.kinds[cells].tobytes()
                    if mark not in seen:
                        seen.add(mark)
                        yield f"{_dealt(m, n_stages, n_replicas)}, {name}", np.ascontiguousarray(cells)


def _windows(grounds: Grounds, row: Ints, n: int) -> list[Ints]:
    """Runs of n devices: all, or beginning at the row's start, at its end, and where regions begin."""
    last = len(row) - n
    if last == 0:
        return [row]
    places = grounds.places[row]
    begins = np.flatnonzero(np.diff(places, prepend=-1))
    starts = np.unique(np.concatenate([[0, last], begins[begins < last]]))
    picked = np.unique(np.linspace(0, len(starts) - 1, WINDOWS).round().astype(int))
    return [row[k : k + n] for k in starts[picked].tolist()]


def _dealt(m: int, n_stages: int, n_replicas: int) -> str:
    if n_replicas == 1 or m == 1:
        return "pipelines of neighbours"
    if m == n_stages:
        return "replicas of a stage side by side"
    return f"{m} mixtures of neighbours"


def random_cells(n_devices: int, n_stages: int, n_replicas: int, rng: np.random.Generator) -> Ints:
    """[R, S]: devices drawn at random."""
    return rng.permutation(n_devices)[: n_stages * n_replicas].reshape(n_replicas, n_stages)

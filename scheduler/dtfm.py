"""DT-FM's objective: what a placement costs in communication alone, as the paper defines it.

N = stages x replicas devices are partitioned into groups, one a stage, each holding its replicas.

    data parallel   max over groups, over d in the group, of sum over d' of 2 (α(d,d') + c_dp / (R β(d,d')))
    pipeline        shortest open path over the groups; a step's length is the bottleneck perfect matching
                    of α(d,d') + c_pp / β(d,d'), d in the one group, d' in the next
    total           data parallel + 2 x pipeline (forward and backward)

Yuan et al., "Decentralized Training of Foundation Models in Heterogeneous Environments", NeurIPS
2022. It knows no compute, memory, overlap or contention and takes devices as equal. Links may be
directed: a path's step is priced in the direction of the forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from scheduler.alike import kinds_of
from scheduler.matching import (
    EXACT_TOUR,
    bottleneck_matching,
    bottleneck_values,
    matching_bound,
    open_tour,
    tour_lengths,
)
from scheduler.topology import Topology, TopologyError

Floats = NDArray[np.float64]
Groups = NDArray[np.int64]
"""[..., stages, replicas] of device indices; each device at most once."""

PAPER_C_DP_BYTES = 0.65e9
"""Gradients of a stage in DT-FM's code: fp32, 1.3 G parameters x 3 of 24 layers."""
PAPER_C_PP_BYTES = 0.4712492e9
"""Activations over a stage boundary in DT-FM's code."""


@dataclass(frozen=True, slots=True)
class Volumes:
    """Bytes a step: of a stage's gradients, and of the activations across one boundary of one pipeline.

    Compressed sizes when a codec is on.
    """

    c_dp_bytes: float = PAPER_C_DP_BYTES
    c_pp_bytes: float = PAPER_C_PP_BYTES

    def __post_init__(self) -> None:
        for name, value in (("c_dp_bytes", self.c_dp_bytes), ("c_pp_bytes", self.c_pp_bytes)):
            if not (np.isfinite(value) and value >= 0):
                raise ValueError(f"{name}: found {value}, required a finite number of bytes, 0 or more")


@dataclass(frozen=True, slots=True)
class Placement:
    """A priced placement. `stages[s][r]` is the device of stage s in replica (pipeline) r.

    Replicas follow the bottleneck matching from stage to stage, so that the cost can be
    recomputed from `stages` and the matrices alone.
    """

    stages: tuple[tuple[int, ...], ...]
    cost_s: float
    data_parallel_s: float
    """The slowest group's exchange."""
    pipeline_s: float
    """The path's length, one way; it counts twice in `cost_s`."""

    @property
    def groups(self) -> Groups:
        return np.array(self.stages, dtype=np.int64)


class DtfmObjective:
    """The objective over one topology, shape and pair of volumes; vectorised over placements.

    Raises TopologyError when stages x replicas is not the number of devices.
    """

    def __init__(self, topology: Topology, n_stages: int, n_replicas: int, volumes: Volumes | None = None):
        n = len(topology)
        if n_stages < 1 or n_replicas < 1 or n_stages * n_replicas != n:
            raise TopologyError(
                f"found {n_stages} stages x {n_replicas} replicas for {n} devices; "
                f"required stages x replicas = {n}"
            )
        self.volumes = volumes or Volumes()
        bandwidth = topology.bandwidth_Bps.copy()
        np.fill_diagonal(bandwidth, np.inf)
        latency = topology.latency_s.copy()
        np.fill_diagonal(latency, 0.0)
        exchange_s = 2 * (latency + self.volumes.c_dp_bytes / (n_replicas * bandwidth))
        self._price((n_stages, n_replicas), exchange_s, latency + self.volumes.c_pp_bytes / bandwidth)

    def _price(self, shape: tuple[int, int], exchange_s: Floats, transfer_s: Floats) -> None:
        n = len(exchange_s)
        self.n_stages, self.n_replicas = shape
        self.n_devices = n
        self.exchange_s = exchange_s
        """[d, d']: what d' adds to d's part of the data-parallel cost; 0 on the diagonal."""
        self.transfer_s = transfer_s
        """[d, d']: forward activations from d to d'."""
        self.symmetric = bool(np.array_equal(self.transfer_s, self.transfer_s.T))
        # Bottlenecks compare only, so whole numbers in the order of the seconds are exact and fastest.
        self._seconds, codes = np.unique(self.transfer_s, return_inverse=True)
        small = len(self._seconds) <= np.iinfo(np.int16).max
        self._codes = codes.reshape(n, n).astype(np.int16 if small else np.int32)

    @cached_property
    def kinds(self) -> NDArray[np.int64]:
        """[d]: interchangeable devices share a number."""
        return kinds_of([self.exchange_s, self.transfer_s])

    def data_parallel_s(self, groups: Groups) -> Floats:
        """The exchange of each group [..., R] -> [...]: its slowest member's sum."""
        if self.n_replicas == 1:
            return np.zeros(groups.shape[:-1])
        pairs = self.exchange_s[groups[..., :, None], groups[..., None, :]]
        slowest: Floats = pairs.sum(axis=-1).max(axis=-1)
        return slowest

    def hop_s(self, a: Groups, b: Groups) -> Floats:
        """The bottleneck matching from each group of `a` [B, R] to that of `b` [B, R] -> [B]."""
        seconds: Floats = self._seconds[bottleneck_values(self._codes[a[:, :, None], b[:, None, :]])]
        return seconds

    def hop_bound_s(self, a: Groups, b: Groups) -> Floats:
        """A lower bound on `hop_s` at a fraction of its price."""
        seconds: Floats = self._seconds[matching_bound(self._codes[a[:, :, None], b[:, None, :]])]
        return seconds

    def hops_s(self, groups: Groups) -> Floats:
        """All hops of a batch of placements: [B, S, R] -> [B, S, S], 0 on the diagonal."""
        b, s = groups.shape[0], self.n_stages
        out = np.zeros((b, s, s))
        i, j = np.triu_indices(s, 1) if self.symmetric else np.nonzero(~np.eye(s, dtype=bool))
        if len(i):
            shape = (b * len(i), self.n_replicas)
            out[:, i, j] = self.hop_s(groups[:, i].reshape(shape), groups[:, j].reshape(shape)).reshape(b, -1)
            if self.symmetric:
                out[:, j, i] = out[:, i, j]
        return out

    def costs_s(self, groups: Groups) -> Floats:
        """The whole objective, stages in their best order: [B, S, R] -> [B]."""
        hops = self.hops_s(groups)
        if self.n_stages <= EXACT_TOUR:
            tours = tour_lengths(hops)
        else:
            tours = np.array([open_tour(h)[0] for h in hops])
        total: Floats = self.data_parallel_s(groups).max(axis=-1) + 2 * tours
        return total

    def costs_in_order_s(self, groups: Groups) -> Floats:
        """The objective with the stages in the order given: [B, S, R] -> [B]."""
        b, s, r = groups.shape
        path = np.zeros(b)
        if s > 1:
            hops = self.hop_s(groups[:, :-1].reshape(-1, r), groups[:, 1:].reshape(-1, r))
            path = hops.reshape(b, s - 1).sum(axis=1)
        total: Floats = self.data_parallel_s(groups).max(axis=-1) + 2 * path
        return total

    def place(self, groups: Groups, keep_order: bool = False) -> Placement:
        """Order the stages of [S, R] (unless `keep_order`) and their replicas, and price the result."""
        if not keep_order:
            groups = groups[open_tour(self.hops_s(groups[None])[0])[1]]
        rows = [groups[0].tolist()]
        for following in groups[1:]:
            _, match = bottleneck_matching(self.transfer_s[np.ix_(rows[-1], following)])
            rows.append([int(following[c]) for c in match])
        stages = tuple(tuple(int(d) for d in row) for row in rows)
        dp_s, pp_s = recompute(self.exchange_s, self.transfer_s, stages)
        return Placement(stages, dp_s + 2 * pp_s, dp_s, pp_s)


def recompute(
    exchange_s: Floats, transfer_s: Floats, stages: tuple[tuple[int, ...], ...]
) -> tuple[float, float]:
    """(data-parallel, one-way pipeline) seconds of stages in replica order, by the plain definition."""
    dp_s = max(sum(float(exchange_s[d, e]) for e in stage if e != d) for stage in stages for d in stage)
    pp_s = sum(max(float(transfer_s[d, e]) for d, e in zip(a, b, strict=True)) for a, b in pairwise(stages))
    return dp_s, pp_s

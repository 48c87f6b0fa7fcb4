"""Which codec each link has while a plan is searched for: the job's, or under `auto` one of its ladder.

Under `auto` the search prices every link with what its ladder has that is fastest on that link, so that a
placement is judged by what compression within the error budget can make of it; what turns out not to be
needed is given back when the placement is found (`relax_codecs.py`). Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from scheduler.job import JobSpec
from scheduler.job_compression import Kind, LinkSpec
from scheduler.ladders import Ladder, ladder
from scheduler.link_codecs import CodecTable, LinkCodecs
from scheduler.plan_codecs import IDENTITY
from scheduler.profile import ModelProfile
from scheduler.topology import Topology
from scheduler.units import MBIT_BPS

Bools = NDArray[np.bool_]


def link_codecs(job: JobSpec, model: ModelProfile, topology: Topology) -> LinkCodecs:
    """What `job` asks for on these links, for micro-batches of `model`'s size."""
    shape = (model.micro_batch, model.sequence_length, job.shape.hidden)
    kinds: tuple[Kind, ...] = ("activations", "gradients", "reduce")
    return LinkCodecs(*(_table(kind, job, shape, model, topology) for kind in kinds))


def _table(
    kind: Kind, job: JobSpec, shape: tuple[int, ...], model: ModelProfile, topology: Topology
) -> CodecTable:
    rules = job.compression.rules(kind)
    names: list[str] = []
    ladders: list[Ladder] = []
    of = np.zeros((len(topology), len(topology)), dtype=np.int8)
    left = ~np.eye(len(topology), dtype=bool)
    for where, choice in rules:
        here = left & fitting(where, topology) if where is not None else left
        left = left & ~here
        if not here.any() and where is not None:
            continue
        rungs: Ladder = ()
        if choice.auto is not None:
            value_bytes = 4 if kind == "reduce" else model.value_bytes
            rungs = ladder(kind, choice.auto, shape, value_bytes, again=False)
        of[here] = len(names)
        names.append(rungs[-1] if rungs else choice.spec().name)
        ladders.append(rungs)
    if names == [IDENTITY]:
        return CodecTable()
    return CodecTable(tuple(names), of, tuple(ladders))


def fitting(where: LinkSpec, topology: Topology) -> Bools:
    """[N, N]: the directed links that `where` means."""
    fits = np.ones((len(topology), len(topology)), dtype=bool)
    if where.between is not None:
        host = _same([d.host or d.name for d in topology.devices])
        region = host | _same([d.region or d.host or d.name for d in topology.devices])
        fits &= {"devices": host, "hosts": region & ~host, "regions": ~region}[where.between]
    if where.below_mbps is not None:
        fits &= topology.bandwidth_Bps < where.below_mbps * MBIT_BPS
    return fits


def _same(names: Sequence[str]) -> Bools:
    known = np.unique(names, return_inverse=True)[1]
    same: Bools = known[:, None] == known[None, :]
    return same

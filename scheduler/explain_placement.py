"""Why a placement is what it is: the alternatives it beat, its bottlenecks, what a faster link would bring.

Sentences for people, made of numbers from the objective; knows nothing of where they are shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from scheduler.bound import lower_bound_s
from scheduler.dtfm import DtfmObjective, Placement, recompute
from scheduler.search import SearchResult
from scheduler.topology import Topology


@dataclass(frozen=True, slots=True)
class Hop:
    """The slowest transfer between a stage and the next."""

    stage: int
    src: int
    dst: int
    seconds: float


def bottleneck_hops(objective: DtfmObjective, placement: Placement) -> tuple[Hop, ...]:
    """For every stage but the last: the link that its transfer waits for."""
    hops = []
    for k, (a, b) in enumerate(pairwise(placement.stages)):
        src, dst = max(zip(a, b, strict=True), key=lambda pair: objective.transfer_s[pair])
        hops.append(Hop(k, src, dst, float(objective.transfer_s[src, dst])))
    return tuple(hops)


def bottleneck_device(objective: DtfmObjective, placement: Placement) -> tuple[int, int]:
    """(stage, device) whose exchange of gradients the step waits for."""
    exchange = objective.exchange_s
    cost = {(s, d): float(exchange[d, list(g)].sum()) for s, g in enumerate(placement.stages) for d in g}
    return max(cost, key=lambda key: cost[key])


def explain(topology: Topology, objective: DtfmObjective, result: SearchResult) -> tuple[str, ...]:
    """A sentence for each choice."""
    p = result.placement
    name = [d.name for d in topology.devices]
    bound = lower_bound_s(objective)
    lines = [
        f"{objective.n_stages} stages x {objective.n_replicas} replicas cost {p.cost_s:.3f} s: "
        f"{p.data_parallel_s:.3f} s of gradient exchange and 2 x {p.pipeline_s:.3f} s along the pipeline",
        f"no placement of this shape can cost less than {bound:.3f} s: at most "
        f"{100 * max(0.0, 1 - bound / p.cost_s) if p.cost_s else 0:.1f} % is left to gain",
        {
            "exhaustive": f"all {result.evaluations} partitions were tried: this is the best",
            "bound met": "a structured placement meets the lower bound: nothing is left to search for",
            "evolution": f"found by evolution in {result.evaluations} judged placements",
        }[result.method]
        + (", ended early by its budget" if result.ended_early else ""),
    ]
    for alternative, cost in sorted(result.seeds_s.items(), key=lambda item: item[1]):
        lead = cost - p.cost_s
        verdict = (
            "is equally good" if lead <= 1e-9 * cost else f"costs {lead:.3f} s more ({cost / p.cost_s:.2f} x)"
        )
        lines.append(f"alternative: {alternative}: {cost:.3f} s, {verdict}")
    if objective.n_replicas > 1:
        stage, device = bottleneck_device(objective, p)
        peers = [e for e in p.stages[stage] if e != device]
        slow = max(peers, key=lambda e: objective.exchange_s[device, e])
        lines.append(
            f"the exchange waits for {name[device]} in stage {stage}; its slowest link is to {name[slow]} "
            f"({objective.exchange_s[device, slow]:.3f} of {p.data_parallel_s:.3f} s)"
            + _if_faster(objective, topology, p, device, slow)
        )
    lines += [
        f"stage {h.stage} to {h.stage + 1} waits {h.seconds:.3f} s for {name[h.src]} -> {name[h.dst]}"
        + _if_faster(objective, topology, p, h.src, h.dst)
        for h in sorted(bottleneck_hops(objective, p), key=lambda h: -h.seconds)[:3]
    ]
    return tuple(lines)


def _if_faster(objective: DtfmObjective, topology: Topology, p: Placement, a: int, b: int) -> str:
    """What twice the bandwidth between a's and b's regions (or between a and b) brings, nothing moved."""
    region = np.array([d.region or d.name for d in topology.devices])
    here, there = region == region[a], region == region[b]
    between = np.outer(here, there) | np.outer(there, here)
    saved_s = np.where(between, 0.5 / topology.bandwidth_Bps, 0.0)
    np.fill_diagonal(saved_s, 0.0)
    exchange = objective.exchange_s - saved_s * (2 * objective.volumes.c_dp_bytes / objective.n_replicas)
    transfer = objective.transfer_s - saved_s * objective.volumes.c_pp_bytes
    dp_s, pp_s = recompute(exchange, transfer, p.stages)
    where = f"inside {region[a]}" if region[a] == region[b] else f"between {region[a]} and {region[b]}"
    gain = p.cost_s - dp_s - 2 * pp_s
    return f"; twice the bandwidth {where} would bring {gain:.3f} s" if gain > 0.0005 else ""

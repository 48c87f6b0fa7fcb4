"""Why a placement is what it is: the alternatives it beat, its bottlenecks, what a faster link would bring.

Sentences for people, made of numbers from the objective; knows nothing of where they are shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

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
        f"{100 * (1 - bound / p.cost_s) if p.cost_s else 0:.1f} % is left to gain",
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
    for hop in sorted(bottleneck_hops(objective, p), key=lambda h: -h.seconds)[:3]:
        lines.append(
            f"stage {hop.stage} to {hop.stage + 1} waits {hop.seconds:.3f} s for {name[hop.src]} -> {name[hop.dst]}"
            + _if_faster(objective, topology, p, hop.src, hop.dst)
        )
    return tuple(lines)


def _if_faster(objective: DtfmObjective, topology: Topology, p: Placement, a: int, b: int) -> str:
    """What twice the bandwidth between a and b would bring to this placement, nothing moved."""
    exchange, transfer = objective.exchange_s.copy(), objective.transfer_s.copy()
    for i, j in ((a, b), (b, a)):
        exchange[i, j] -= objective.volumes.c_dp_bytes / (objective.n_replicas * topology.bandwidth_Bps[i, j])
        transfer[i, j] -= objective.volumes.c_pp_bytes / (2 * topology.bandwidth_Bps[i, j])
    dp_s, pp_s = recompute(exchange, transfer, p.stages)
    return f"; twice its bandwidth would bring {p.cost_s - dp_s - 2 * pp_s:.3f} s"

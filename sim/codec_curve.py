"""What compression gives: a plan's throughput while the links between regions grow from slow to fast.

Only those links change; the plan, delays and links within a region stay. Priced by the engine's fast twin.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from scheduler.link_codecs import codecs_of_plan
from scheduler.plan import Plan
from scheduler.plan_codecs import same_everywhere
from scheduler.step_time import plan_step_s, pricing_of
from scheduler.topology import Topology
from sim.replay import Work

BANDWIDTHS_BPS = tuple(x * 1e6 / 8 for x in (50, 100, 200, 500, 1000, 2000, 5000, 10000))
"""From AC-SGD's slowest link and below to its fastest."""
CODECS = (
    ("uncompressed", "identity", "identity"),
    ("8 bits", "kbit:bits=8", "kbit:bits=8"),
    ("4 bits", "kbit:bits=4", "kbit:bits=8"),
    ("2 bits", "kbit:bits=2", "kbit:bits=8"),
)
"""(label, what activations and their gradients are sent as, what weights' gradients are)."""

Curve = tuple[str, tuple[tuple[float, float], ...]]


def throughput(plan: Plan, work: Work, links: Topology, tokens_a_step: int) -> tuple[Curve, ...]:
    """(label, ((bytes/s of each link between regions, tokens/s), ...)) of CODECS; none in one region."""
    region = np.array([d.region or d.name for d in links.devices])
    across = region[:, None] != region[None, :]
    if not across.any():
        return ()
    curves = []
    for label, activations, gradients in CODECS:
        codecs = same_everywhere(plan.n_stages, plan.n_replicas, activations, activations, gradients)
        tables = codecs_of_plan(replace(plan, codecs=codecs), [p.device for p in work.profiles])
        points = []
        for rate in BANDWIDTHS_BPS:
            bandwidth_Bps = np.where(across, rate, links.bandwidth_Bps)
            topology = Topology(links.devices, links.latency_s, bandwidth_Bps)
            step_s = plan_step_s(pricing_of(work.model, work.profiles, topology, tables), plan)
            points.append((rate, tokens_a_step / step_s))
        curves.append((label, tuple(points)))
    return tuple(curves)

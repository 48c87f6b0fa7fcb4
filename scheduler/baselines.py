"""Placements to be measured against, all priced by the same objective, through one interface.

Random, the order in which the devices stand, Megatron's two orders, greedy, and DT-FM's own search
(`dtfm_search.py`). None knows what the others found.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scheduler.dtfm import DtfmObjective
from scheduler.dtfm_search import dtfm_search
from scheduler.encoding import Stages, greedy, random_groups


@dataclass(frozen=True, slots=True)
class Baseline:
    name: str
    cost_s: float
    note: str


def baselines(
    objective: DtfmObjective,
    places: Stages,
    rng: np.random.Generator,
    random_samples: int = 1000,
    dtfm_trials: int = 4900,
    dtfm_population: int = 100,
) -> tuple[Baseline, ...]:
    """Every baseline's cost. `dtfm_trials` = 0 leaves DT-FM's own search out."""
    samples = random_groups(objective, random_samples, rng)
    costs = np.concatenate([objective.costs_s(samples[k : k + 250]) for k in range(0, len(samples), 250)])
    found = [
        Baseline("random, mean", float(costs.mean()), f"{random_samples} drawn, stages in their best order"),
        Baseline(f"random, best of {random_samples}", float(costs.min()), "the same draws"),
        _in_order(
            objective,
            "region order",
            region_order(objective, places),
            "pipelines of devices sorted by region",
        ),
        _in_order(
            objective, "Megatron, data parallel innermost", data_innermost(objective), "as devices stand"
        ),
        _in_order(
            objective, "Megatron, pipeline innermost", pipeline_innermost(objective), "as devices stand"
        ),
        Baseline(
            "greedy", objective.place(greedy(objective)).cost_s, "each stage takes the nearest devices left"
        ),
    ]
    if dtfm_trials:
        groups = dtfm_search(objective, rng, dtfm_population, dtfm_trials)
        found.append(
            Baseline(
                "DT-FM's search",
                objective.place(groups).cost_s,
                f"{dtfm_population} + {dtfm_trials} placements",
            )
        )
    return tuple(found)


def _in_order(objective: DtfmObjective, name: str, groups: Stages, note: str) -> Baseline:
    return Baseline(name, objective.place(groups, keep_order=True).cost_s, note)


def region_order(objective: DtfmObjective, places: Stages) -> Stages:
    """[S, R]: devices sorted by region (as the regions first appear); each pipeline takes the next S."""
    row = np.argsort(places, kind="stable")
    return row.reshape(objective.n_replicas, objective.n_stages).T


def data_innermost(objective: DtfmObjective) -> Stages:
    """[S, R]: Megatron's order: neighbouring ranks are replicas of one stage."""
    return np.arange(objective.n_devices).reshape(objective.n_stages, objective.n_replicas)


def pipeline_innermost(objective: DtfmObjective) -> Stages:
    """[S, R]: neighbouring ranks are stages of one pipeline."""
    return np.arange(objective.n_devices).reshape(objective.n_replicas, objective.n_stages).T

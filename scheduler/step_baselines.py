"""Placements that the search for the step time is measured against, priced by the same twin.

Each gets the layers cut and the batch shared as any placement would, so it differs in who stands
where alone. None knows what the others found.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from scheduler import baselines as dtfm_baselines
from scheduler.baselines import Baseline
from scheduler.dtfm import DtfmObjective
from scheduler.dtfm_search import dtfm_search
from scheduler.encoding import greedy
from scheduler.step_case import Case, dtfm_objective, place
from scheduler.step_kernels import Ints
from scheduler.step_seeds import random_cells


def step_baselines(
    case: Case, rng: np.random.Generator, random_samples: int = 200, dtfm_trials: int = 4900
) -> tuple[Baseline, ...]:
    """Every baseline's step time, over the case's first stages x replicas devices.

    Infinite where it does not fit; `dtfm_trials` = 0 leaves DT-FM's own search out.
    """
    s, r = case.n_stages, case.n_replicas
    drawn = [_step_s(case, random_cells(s * r, s, r, rng)) for _ in range(random_samples)]
    found = [
        Baseline("random, mean", float(np.mean(drawn)), f"{random_samples} drawn"),
        Baseline(f"random, best of {random_samples}", min(drawn), "the same draws"),
    ]
    first = place(case, np.arange(s * r).reshape(r, s), "as they stand")
    if first is None:
        return tuple(found)
    objective = dtfm_objective(first)
    for name, cells in _structured(case, objective):
        found.append(Baseline(name, _step_s(case, cells), "layers cut and batch shared as ours"))
    if dtfm_trials:
        groups = dtfm_search(objective, rng, min(100, dtfm_trials), dtfm_trials)
        cells = np.array(objective.place(groups).stages, dtype=np.int64).T
        found.append(Baseline("DT-FM's search", _step_s(case, np.ascontiguousarray(cells)), "its objective"))
    return tuple(found)


def _structured(case: Case, objective: DtfmObjective) -> Iterator[tuple[str, Ints]]:
    places = case.grounds.places[: objective.n_devices]
    for name, groups in (
        ("region order", dtfm_baselines.region_order(objective, places)),
        ("Megatron, data parallel innermost", dtfm_baselines.data_innermost(objective)),
        ("Megatron, pipeline innermost", dtfm_baselines.pipeline_innermost(objective)),
        ("greedy", np.array(objective.place(greedy(objective)).stages, dtype=np.int64)),
    ):
        yield name, np.ascontiguousarray(groups.T)


def _step_s(case: Case, cells: Ints) -> float:
    found = place(case, cells, "a baseline")
    return np.inf if found is None else found.step_s

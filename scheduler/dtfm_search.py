"""DT-FM's own search, written from its paper: a genetic algorithm whose local search uses the fastest links.

Crossover copies five devices' stages from one parent into the other and restores the balance.
Local search: fast links are wasted inside a group, where only gradients go, so the device with
the fastest link of a group moves to the group that is dearest to reach from it; that group
gives its own such device, and so on until the first group is reached again. Moves are judged by
pipeline costs alone, so a placement that becomes better when gradients weigh more is
invisible to it. Kept as a baseline (Yuan et al. 2022, section 3.3; population 100, 4,900 trials).
"""

from __future__ import annotations

import numpy as np

from scheduler.dtfm import DtfmObjective, Floats, Groups
from scheduler.encoding import Stages, balance, random_groups, to_groups, to_stages


def dtfm_search(
    objective: DtfmObjective, rng: np.random.Generator, population: int = 100, trials: int = 4900
) -> Groups:
    """The best placement found: [S, R]."""
    start = random_groups(objective, population, rng)
    people = [to_stages(g) for g in start]
    costs = objective.costs_s(start)
    for _ in range(trials):
        one, other = rng.integers(population, size=2)
        child = people[other].copy()
        points = rng.choice(objective.n_devices, size=min(5, objective.n_devices), replace=False)
        child[points] = people[one][points]
        child = circulate(objective, balance(child, objective.n_stages, rng))
        cost = float(objective.costs_s(to_groups(child, objective.n_stages)[None])[0])
        worse = one if costs[one] > costs[other] else other
        if cost < costs[worse]:
            people[worse], costs[worse] = child, cost
    return to_groups(people[int(costs.argmin())], objective.n_stages)


def circulate(objective: DtfmObjective, stage: Stages) -> Stages:
    """The local search: closed cycles of moves between groups while their summed gain is positive."""
    if objective.n_stages < 2 or objective.n_replicas < 2:
        return stage
    locked = np.zeros(objective.n_devices, dtype=bool)
    for _ in range(objective.n_stages):
        moved, gain, used = _cycle(objective, stage, locked)
        locked[used] = True
        if gain <= 0:
            break
        stage = moved
    return stage


def _cycle(objective: DtfmObjective, stage: Stages, locked: Stages) -> tuple[Stages, float, list[int]]:
    """One cycle: from the group with the best move, from group to group, closed at its most gainful point."""
    s = objective.n_stages
    stage, locked = stage.copy(), locked.copy()
    gain, mover = _gains(objective, stage, locked)
    first = here = int(gain.max(axis=1).argmax())
    total, best, used = 0.0, (0.0, stage.copy()), []
    for _ in range(s):
        if mover[here] < 0:
            break
        device = int(mover[here])
        used.append(device)
        if here != first:  # close the cycle here: the device goes to the first group
            closed = stage.copy()
            closed[device] = first
            if total + gain[here, first] > best[0]:
                best = (total + float(gain[here, first]), closed)
        target = int(np.where(np.arange(s) == first, -np.inf, gain[here]).argmax())
        if not np.isfinite(gain[here, target]):
            break
        total += float(gain[here, target])
        stage[device], locked[device] = target, True
        here = target
        gain, mover = _gains(objective, stage, locked)
    return best[1], best[0], used


def _gains(objective: DtfmObjective, stage: Stages, locked: Stages) -> tuple[Floats, Stages]:
    """gain[group, target] of moving the group's mover away, and mover[group] (-1: all are locked).

    The mover ends the group's fastest link; its gain is the mean cost to the target less that link's.
    """
    s, n = objective.n_stages, objective.n_devices
    member = (stage[:, None] == np.arange(s)).astype(float)
    mean = objective.transfer_s @ member / np.maximum(member.sum(axis=0), 1)
    same = (stage[:, None] == stage[None, :]) & ~np.eye(n, dtype=bool)
    fastest = np.where(same, objective.transfer_s, np.inf).min(axis=1)
    fastest[locked.astype(bool)] = np.inf
    table = np.where(member.T > 0, fastest[None, :], np.inf)
    mover = np.where(np.isfinite(table.min(axis=1)), table.argmin(axis=1), -1)
    gain = np.full((s, s), -np.inf)
    groups = np.flatnonzero(mover >= 0)
    gain[groups] = mean[mover[groups]] - fastest[mover[groups]][:, None]
    gain[np.arange(s), np.arange(s)] = -np.inf
    return gain, mover

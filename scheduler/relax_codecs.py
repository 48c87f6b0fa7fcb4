"""The least compression that a placement is as fast with: what `auto` gives back of what the search took.

The search prices every link with the fastest codec that its error budget allows. Most links do not hold the
step up: link by link, each gets the least error with which the step stays as short. From below one would
stop where two links hold the step up alike, for neither alone shortens it. Pure; the engine's fast twin
judges, and where it is an estimate the engine has the last word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from scheduler.ladders import Ladder
from scheduler.link_codecs import LinkCodecs, cells_of, open_tables, positions, put_codecs
from scheduler.plan import Plan
from scheduler.plan_codecs import IDENTITY, PlanCodecs, plan_codecs
from scheduler.profile import DeviceProfile, ModelProfile
from scheduler.settings import Setting, priced
from scheduler.step_time import layout_of, layout_step_s, pricing_of, tables_for
from scheduler.topology import Topology
from scheduler.units import duration

SLACK = 0.01
"""By this share may the predicted step be longer than with the most compression everywhere."""

REPLAYED = 3e6
"""Actions that the engine may replay to judge; it does some 150,000 a second."""
KINDS = ("activation", "gradient", "reduce")
Judge = Callable[[PlanCodecs], float]
"""Predicted seconds of a step of the plan with these codecs."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one codec stands: over a boundary of a replica, or (`replica` -1) among a stage's replicas."""

    kind: str
    replica: int
    at: int


@dataclass(slots=True)
class Choice:
    """The codecs of a plan under way, place by place."""

    names: dict[Place, str]

    @staticmethod
    def of(plan: Plan) -> Choice:
        names = {Place("reduce", -1, s): plan.codecs.of_stage(s) for s in range(plan.n_stages)}
        for kind in ("activation", "gradient"):
            for r in range(plan.n_replicas):
                for b in range(plan.n_stages - 1):
                    names[Place(kind, r, b)] = plan.codecs.of_boundary(kind, r, b)
        return Choice(names)

    def codecs(self, n_stages: int, n_replicas: int) -> PlanCodecs:
        across, back = (
            tuple(
                tuple(self.names[Place(kind, r, b)] for b in range(n_stages - 1)) for r in range(n_replicas)
            )
            for kind in ("activation", "gradient")
        )
        return plan_codecs(across, back, tuple(self.names[Place("reduce", -1, s)] for s in range(n_stages)))


def relaxed(plan: Plan, ladders: Mapping[Place, Ladder], twin: Judge, is_exact: bool, engine: Judge) -> Plan:
    """`plan` with the least compression that keeps its step, within SLACK, and the reason.

    `ladders`: of the places that are the planner's to choose. Where the twin is only an estimate and what it
    gives back makes the step longer after all, the engine judges if it can in time; else all stays.
    """
    codecs = _given_back(plan, ladders, twin, by_link=True)
    if not is_exact and engine(codecs) > engine(plan.codecs) * (1 + 2 * SLACK):
        rungs = sum(map(len, ladders.values())) / plan.n_replicas
        actions = rungs * sum(len(plan.actions(r)) for r in range(plan.n_ranks))
        codecs = _given_back(plan, ladders, engine, by_link=False) if actions <= REPLAYED else plan.codecs
    none = Choice({**Choice.of(plan).names, **dict.fromkeys(ladders, IDENTITY)})
    step_s, free_s = engine(codecs), engine(none.codecs(plan.n_stages, plan.n_replicas))
    reasons = (*plan.reasons, _reason(codecs, free_s, step_s))
    return replace(plan, codecs=codecs, predicted_step_s=step_s, reasons=reasons)


def _given_back(plan: Plan, ladders: Mapping[Place, Ladder], judge: Judge, by_link: bool) -> PlanCodecs:
    """The codecs, place by place, or (not `by_link`) with all replicas of a boundary together.

    Places whose share of the slack pays for none at all go without; then all others go up their ladders in
    turn, a rung at a time, as far as the slack lasts.
    """
    chosen = Choice.of(plan)

    def step_s(places: Sequence[Place] = (), name: str = "") -> float:
        tried = Choice({**chosen.names, **dict.fromkeys(places, name)})
        return judge(tried.codecs(plan.n_stages, plan.n_replicas))

    free_s = step_s(tuple(ladders), IDENTITY)
    least_s = min(step_s(), free_s)
    enough_s = least_s * (1 + SLACK)
    if free_s <= enough_s:
        chosen.names.update(dict.fromkeys(ladders, IDENTITY))
        return chosen.codecs(plan.n_stages, plan.n_replicas)
    climbing = []
    units = list(_units(ladders, by_link))
    for places, ladder in units:
        if step_s(places, ladder[0]) <= step_s() + least_s * SLACK / len(units):
            chosen.names.update(dict.fromkeys(places, ladder[0]))
        else:
            climbing.append((places, ladder, max(ladder.index(chosen.names[p]) for p in places)))
    while climbing:
        climbing = [
            (places, ladder, rung - 1)
            for places, ladder, rung in climbing
            if rung and _climbs(chosen, places, ladder[rung - 1], step_s, enough_s)
        ]
    return chosen.codecs(plan.n_stages, plan.n_replicas)


def _climbs(
    chosen: Choice,
    places: Sequence[Place],
    name: str,
    step_s: Callable[[Sequence[Place], str], float],
    enough_s: float,
) -> bool:
    """Take the rung `name` if the step stays short enough with it."""
    if step_s(places, name) > enough_s:
        return False
    chosen.names.update(dict.fromkeys(places, name))
    return True


def _units(ladders: Mapping[Place, Ladder], by_link: bool) -> Iterator[tuple[list[Place], Ladder]]:
    units: dict[tuple[str, int, int, Ladder], list[Place]] = {}
    for place, ladder in ladders.items():
        units.setdefault((place.kind, place.at, place.replica if by_link else -1, ladder), []).append(place)
    for (_, _, _, ladder), places in units.items():
        yield places, ladder


def open_places(plan: Plan, codecs: LinkCodecs, names: Sequence[str]) -> dict[Place, Ladder]:
    """What the planner may choose from, and where; `codecs`: the search's, of devices `names`."""
    at = positions(codecs, cells_of(plan, names), len(names))
    found: dict[Place, Ladder] = {}
    for kind, table, rows in (
        ("activation", codecs.activation, at.activation.tolist()),
        ("gradient", codecs.gradient, at.gradient.tolist()),
        ("reduce", codecs.reduce, [at.reduce.tolist()]),
    ):
        for r, row in enumerate(rows):
            for k, position in enumerate(row):
                if table.ladders and table.ladders[position]:
                    found[Place(kind, -1 if kind == "reduce" else r, k)] = table.ladders[position]
    return found


def twin_judge(
    plan: Plan,
    model: ModelProfile,
    devices: Sequence[DeviceProfile],
    topology: Topology,
    ladders: Mapping[Place, Ladder],
) -> tuple[Judge, bool]:
    """The engine's fast twin for `plan` with any codecs that it or the ladders name; whether it is exact."""
    model, devices, topology = priced(Setting.of(plan), model, devices, topology)
    names = [p.device for p in devices]
    rungs = {kind: chain(*(x for place, x in ladders.items() if place.kind == kind)) for kind in KINDS}
    tables = open_tables(len(names), [(*used, *rungs[kind]) for kind, used in plan.codecs.named])
    pricing, cells = (
        pricing_of(model, devices, topology, tables, plan.batch_shares, plan.samples),
        cells_of(plan, names),
    )
    order = plan.schedule, plan.n_stages, plan.micro_batches, plan.warmup_extra
    actions = tables_for(*order, plan.sequence_shards - 1)
    layout = layout_of(pricing, plan)

    def judge(codecs: PlanCodecs) -> float:
        put_codecs(codecs, cells, tables)
        return layout_step_s(pricing, actions, layout)

    return judge, pricing.exact


def _reason(codecs: PlanCodecs, free_s: float, step_s: float) -> str:
    if not (told := codecs.told):
        return f"No link is worth compressing: {duration(free_s)} a step without."
    return (
        f"Codecs, the least that shorten the step: {told}; {duration(step_s)} a step predicted"
        f" against {duration(free_s)} with the same placement and none."
    )

"""From a job and measurements to the fastest layout: shapes, settings and the search over them.

Of a large network blocks of like devices are placed first, as if each were one, and what is found is
refined. Every shape begins with the setting that is taken unless another pays; the fastest shapes, and those
whose memory does not suffice, have their knobs tuned at their best placement before they are
searched. Knows no clock and no processes; says nothing to anybody, which is `plan_reasons.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import inf

import numpy as np

from scheduler.blocks import blocks_of, fold_of, unfolded
from scheduler.choose_codecs import link_codecs
from scheduler.cost import predict
from scheduler.job import JobSpec
from scheduler.link_codecs import LinkCodecs, codecs_of_cells
from scheduler.partition import DoesNotFit, partition
from scheduler.plan import Plan
from scheduler.profile import DeviceProfile, ModelProfile
from scheduler.remembered import may_remember_samples
from scheduler.settings import Setting, choices, priced
from scheduler.shard_order import in_best_order
from scheduler.step_bound import lower_bounds_s
from scheduler.step_case import Case, Found, as_it_is, even_shares, faster, place
from scheduler.step_kernels import Ints, Layout
from scheduler.step_search import MapTasks, StepSearchOptions, StepSearchResult, search_steps
from scheduler.step_seeds import Grounds, grounds_of
from scheduler.step_time import Pricing, pricing_of
from scheduler.topology import Topology
from scheduler.tuning import WORTH, Price, tune

FINE = 64
TUNED_SHAPES = 16
"""The fastest shapes, whose knobs are tuned before they are searched; as many of those that do not fit."""
UNFOLDED = 6
"""Layouts of blocks that are refined device by device, each of another shape."""
BESIDE = 60
"""Shapes of a large network that are opened device by device as well, least bound first."""
GIVEN = 3
"""Layouts of a search with fewer codecs that one with more begins with as well."""
AGAIN = 0.2
"""Share of the effort that is kept for the best layout, its knobs turned again."""
HOPELESS = 0.2
"""By how much slower, as a share, a layout with another warm-up is to be as it is, not to be walked."""
JUDGED = 6
"""Layouts that the engine compares where the twin is only an estimate."""


@dataclass(slots=True)
class Ways:
    """What plans are made from, and the cases it gives: one for a shape and a setting."""

    job: JobSpec
    model: ModelProfile
    devices: tuple[DeviceProfile, ...]
    topology: Topology
    """Of the devices, in their order."""
    _pricings: dict[tuple[int, bool, int, int, int, int], tuple[Pricing, Grounds, LinkCodecs]] = field(
        default_factory=dict
    )
    _cases: list[tuple[Case, Setting]] = field(default_factory=list)
    _remembers: bool = field(init=False)

    def __post_init__(self) -> None:
        self._remembers = may_remember_samples(self.job, self.model)

    def case(self, n_stages: int, n_replicas: int, setting: Setting) -> Case:
        """The case; its number leads back to the setting."""
        pricing, grounds, _ = self._priced(setting, n_replicas)
        n_micro_batches = self.job.global_batch // (setting.micro_batch or self.model.micro_batch)
        n_micro_batches *= setting.shards  # where replicas share sequences each takes all of them
        case = Case(
            pricing,
            grounds,
            setting.schedule,
            setting.warmup_extra,
            n_micro_batches,
            n_stages,
            n_replicas,
            len(self._cases),
            setting.shards > 1,
        )
        self._cases.append((case, setting))
        return case

    def setting(self, case: Case) -> Setting:
        return self._cases[case.number][1]

    def first_setting(self, n_stages: int, n_replicas: int) -> Setting:
        """What is taken unless another pays."""
        knobs = choices(self.job, self.topology, n_stages, n_replicas)
        return knobs.at((0,) * len(knobs.sizes))

    def codecs(self, case: Case) -> LinkCodecs:
        """What the case prices links with."""
        return self._priced(self.setting(case), case.n_replicas)[2]

    def _priced(self, setting: Setting, n_replicas: int) -> tuple[Pricing, Grounds, LinkCodecs]:
        sharing = n_replicas // setting.shards if self._remembers else 1
        knobs = setting.micro_batch, setting.recompute, setting.streams, setting.local_steps
        key = (*knobs, sharing, setting.shards)
        if key not in self._pricings:
            model, devices, topology = priced(setting, self.model, self.devices, self.topology)
            codecs = link_codecs(self.job, model, devices, topology, sharing)
            pricing = pricing_of(model, devices, topology, codecs, sharing, self.job.global_batch)
            region = {d.name: d.region for d in topology.devices}
            grounds = grounds_of(pricing, [region[p.device] for p in devices])
            self._pricings[key] = pricing, grounds, codecs
        return self._pricings[key]

    def plan(self, found: Found, version: int, reorder: bool = True) -> Plan:
        """The layout as a plan, timed by the engine; `reorder`: where replicas share sequences, with its
        pipelines in the order that is best for the shards."""
        names, layout = found.case.pricing.names, found.layout
        cut = layout.cut.tolist()
        plan = Plan(
            version,
            tuple(tuple(names[d] for d in row) for row in layout.cells.tolist()),
            tuple(pairwise(cut)),
            tuple(layout.shares.tolist()),
            **self.setting(found.case).knobs,
            codecs=codecs_of_cells(self.codecs(found.case), layout.cells, len(names)),
        )
        there = taking_part(self.topology, plan)
        if plan.split == "sequence" and reorder:
            plan = in_best_order(plan, lambda p: self._engine_s(p, there))
        return replace(plan, predicted_step_s=self._engine_s(plan, there))

    def _engine_s(self, plan: Plan, there: Topology) -> float:
        return predict(plan, self.model, self.devices, there).duration_s

    def tuned(
        self, n_stages: int, n_replicas: int, cells: Ints, how: str, kept: Layout | None = None
    ) -> Found | DoesNotFit:
        """The placement under the setting that fits and is fastest, or what lacks under the one that
        lacks least. Where `kept`'s cut and shares do for a setting they stay."""
        places: dict[Setting, Found] = {}
        errors: list[DoesNotFit] = []

        def price(setting: Setting) -> Price:
            case = self.case(n_stages, n_replicas, setting)
            found = place(case, cells, how, fair=case.grounds.unlike)
            if kept is not None and kept.shares.sum() == case.micro_batches:
                found = faster(found, as_it_is(case, kept, how))
            if found is None:
                errors.append(self.what_lacks(case, cells))
                return Price(errors[-1].missing_bytes, inf)
            places[setting] = found
            return Price(0, found.step_s)

        knobs = choices(self.job, self.topology, n_stages, n_replicas)
        # Knob by knob nobody gets to a deep warm-up that only fits with recomputation: begin with either.
        best: tuple[Setting, Price] | None = None
        for recompute in knobs.recompute:
            tuned = tune(replace(knobs, recompute=(recompute,)), price)
            if best is None or tuned[1].beats(best[1]):
                best = tuned
        assert best is not None
        setting, found = best
        if found.missing_bytes:
            return min(errors, key=lambda e: e.missing_bytes)
        if setting.recompute and len(knobs.recompute) > 1:  # say so, as `choices` does of what it turns
            turned = knobs.at((0, 0, 0, knobs.recompute.index(True))).reason
            reason = "; ".join(x for x in (setting.reason, turned) if x)
            self._cases[places[setting].case.number] = (places[setting].case, replace(setting, reason=reason))
        return places[setting]

    def beside(self, found: Found) -> list[Found]:
        """The layout with a warm-up one step less and one step deeper, as far as either fits."""
        case, setting = found.case, self.setting(found.case)
        knobs = choices(self.job, self.topology, case.n_stages, case.n_replicas)
        at = knobs.positions(setting)
        near = []
        for k in (at[2] - 1, at[2] + 1):
            if 0 <= k < len(knobs.orders):
                other = self.case(case.n_stages, case.n_replicas, knobs.at((at[0], at[1], k, at[3])))
                placed = place(other, found.layout.cells, found.how, fair=case.grounds.unlike)
                best = faster(placed, as_it_is(other, found.layout, found.how))
                near += [best] if best is not None else []
        return near

    def at_other_depths(self, found: Found) -> Iterator[Found]:
        """The placement with every depth of the warm-up, forwards done again or not, as far as it fits."""
        case, setting = found.case, self.setting(found.case)
        knobs = choices(self.job, self.topology, case.n_stages, case.n_replicas)
        streams, size, at, again = knobs.positions(setting)
        for order in range(len(knobs.orders)):
            for recompute in range(len(knobs.recompute)):
                if (order, recompute) != (at, again):
                    turned = knobs.at((streams, size, order, recompute))
                    other = self.case(case.n_stages, case.n_replicas, turned)
                    placed = place(other, found.layout.cells, found.how)
                    yield from [placed] if placed is not None else []

    def what_lacks(self, case: Case, cells: Ints) -> DoesNotFit:
        """The cut of a placement that lacks least memory, as an error."""
        model, devices, topology = priced(self.setting(case), self.model, self.devices, self.topology)
        shares = even_shares(case.micro_batches, case.n_replicas)
        in_flight = case.tables(shares).in_flight[int(shares.max())]
        try:
            partition(
                model,
                [[devices[d] for d in column] for column in cells.T.tolist()],
                {d.name: d.memory_bytes for d in topology.devices},
                in_flight.tolist(),
            )
        except DoesNotFit as e:
            return e.with_traceback(None)  # which would keep every cut that was tried in memory
        raise AssertionError("the two cuts disagree about what fits")


@dataclass(frozen=True, slots=True)
class Chosen:
    """The fastest plan found and what it was chosen over."""

    plan: Plan
    found: Found
    result: StepSearchResult
    others: tuple[Found, ...]
    """The best of every other shape that was replayed, fastest first."""
    unfit: tuple[tuple[int, int, DoesNotFit], ...]
    """(stages, replicas, what lacks)."""
    bound_s: float
    """No plan of the shapes considered can have a shorter step, under the settings searched; 0: not known."""


def taking_part(topology: Topology, plan: Plan) -> Topology:
    """The part of the network that `plan` uses: of thousands of devices the engine need not hear."""
    used = {name for pipeline in plan.placement for name in pipeline}
    return topology.subset([i for i, d in enumerate(topology.devices) if d.name in used])


def shapes(n_devices: int, n_layers: int, most_replicas: int) -> list[tuple[int, int]]:
    """(stages, replicas) that `n_devices` or fewer can hold: every one with up to `FINE` replicas; of more,
    each number about an eighth above the last, and the most there can be."""
    found = []
    for s in range(1, min(n_devices, n_layers) + 1):
        most = min(n_devices // s, most_replicas)
        replicas = list(range(1, min(most, FINE) + 1))
        while replicas[-1] < most:
            replicas.append(min(most, replicas[-1] + max(1, replicas[-1] // 8)))
        found += [(s, r) for r in replicas]
    return found


def search_plan(
    ways: Ways,
    wanted: Sequence[tuple[int, int]],
    version: int,
    options: StepSearchOptions,
    map_tasks: MapTasks = map,
    should_stop: Callable[[], bool] = lambda: False,
    simpler: tuple[Ways, Chosen] | None = None,
) -> Chosen:
    """The fastest plan among the shapes `wanted`. DoesNotFit if none fits in memory.

    `simpler`: what was found of the same job with fewer codecs to choose from; the search begins there, too.
    """
    if len(ways.devices) > options.blocks:
        options = replace(options, rounds=options.large_rounds, glides=1, heat=1.4 * options.heat)
    first = [ways.case(s, r, ways.first_setting(s, r)) for s, r in wanted]
    bounds = lower_bounds_s(first)
    starts = _of_blocks(ways, wanted, first[0].micro_batches, options, map_tasks, should_stop)
    given = _as_here(ways, *simpler) if simpler is not None else []
    opening, floors = first, bounds
    if starts:  # pipelines inside a block, and fewer of them than it has devices, are beyond blocks
        able = [k for k in np.argsort(bounds, kind="stable") if bounds[k] < starts[0].step_s]
        opening, floors = [first[k] for k in able[:BESIDE]], [bounds[k] for k in able[:BESIDE]]
    opened = search_steps(opening, 0, replace(options, rounds=(), exhaustive=0), floors_s=floors)
    tuned, errors = _tuned(ways, opened, opening)
    tuned = sorted([*starts, *given, *tuned], key=lambda f: f.key)[:TUNED_SHAPES]
    if not tuned:
        raise min((e for _, _, e in errors), key=lambda e: e.missing_bytes)
    cases = [f.case for f in tuned]
    seed = ways.job.seed
    most = replace(options, actions=(1 - AGAIN) * options.actions)
    result = search_steps(cases, seed, most, map_tasks, should_stop, starts=tuned)
    assert result is not None  # what was tuned fits
    others = [f for f in result.by_case if f is not result.best]
    if opened is not None:
        known = {(f.case.n_stages, f.case.n_replicas) for f in tuned}
        others += [f for f in opened.by_case if (f.case.n_stages, f.case.n_replicas) not in known]
    result = _tuned_again(ways, result, options, map_tasks, should_stop)
    found, plan = _judged(ways, result, version)
    others = sorted((f for f in others if f.case.number != found.case.number), key=lambda f: f.key)
    bound_s = min([*lower_bounds_s(cases), *bounds]) if plan.split == "batch" else 0.0
    return Chosen(plan, found, result, tuple(others), tuple(errors), bound_s)


def _as_here(ways: Ways, others: Ways, chosen: Chosen) -> list[Found]:
    """The best layouts of the same devices that were found with other codecs, priced with these."""
    best = {f.case.number: f for f in (chosen.found, *chosen.result.by_case[:GIVEN])}.values()
    cases = [ways.case(f.case.n_stages, f.case.n_replicas, others.setting(f.case)) for f in best]
    here = (as_it_is(case, f.layout, f.how) for case, f in zip(cases, best, strict=True))
    return [f for f in here if f is not None]


def _of_blocks(
    ways: Ways,
    wanted: Sequence[tuple[int, int]],
    n_micro_batches: int,
    options: StepSearchOptions,
    map_tasks: MapTasks,
    should_stop: Callable[[], bool],
) -> list[Found]:
    """The best layouts of a large network's blocks, unfolded, fastest first; none of a small network, or
    where no layout of blocks fits."""
    if ways.job.split == "sequence":  # a block's devices would be copies of one pipeline, and no two are
        return []
    fold = fold_of(len(ways.devices), n_micro_batches, options.blocks, [r for _, r in wanted])
    if fold == 1:
        return []
    s, r = wanted[0]
    blocks = blocks_of(ways.case(s, r, ways.first_setting(s, r)).grounds, fold)
    shapes = sorted({(s, r // fold) for s, r in wanted if r >= fold and s * (r // fold) <= len(blocks)})
    at = blocks[:, 0]
    few = Ways(
        ways.job.model_copy(update={"global_batch": ways.job.global_batch // fold}),
        ways.model,
        tuple(ways.devices[d] for d in at),
        ways.topology.subset(at.tolist()),
    )
    try:
        chosen = search_plan(few, shapes, 0, options, map_tasks, should_stop) if shapes else None
    except DoesNotFit:
        chosen = None
    if chosen is None:
        return []
    found = []
    for f in {f.case.number: f for f in (chosen.found, *chosen.result.by_case[:UNFOLDED])}.values():
        case = ways.case(f.case.n_stages, f.case.n_replicas * fold, few.setting(f.case))
        large = as_it_is(case, unfolded(f.layout, blocks), f.how)
        found += [large] if large is not None else []
    return sorted(found, key=lambda f: f.key)


def _tuned_again(
    ways: Ways,
    result: StepSearchResult,
    options: StepSearchOptions,
    map_tasks: MapTasks,
    should_stop: Callable[[], bool],
) -> StepSearchResult:
    """The knobs were tuned at an opening: turn them again where the search has come to, and go on; and from
    there with the next depths of the warm-up, which may only pay once the layout is made for them."""
    best = result.best
    turned = ways.tuned(best.case.n_stages, best.case.n_replicas, best.layout.cells, best.how, best.layout)
    starts = [best]
    if isinstance(turned, Found) and turned.step_s < best.step_s * (1 - WORTH):
        starts.append(turned)
    near = ways.beside(min(starts, key=lambda f: f.key))
    starts += [f for f in near if f.step_s <= best.step_s * (1 + HOPELESS)]
    if not options.rounds or (best.exhausted and len(starts) == 1):
        return result
    few = replace(
        options,
        actions=AGAIN * options.actions,
        arranged=(0, 0.0),
        rounds=((4, 3, 0.6), (1, 4, 0.4)),
        heat=0.3 * options.heat,
        glides=0,
        dtfm=False,
    )
    cases = [f.case for f in starts]
    more = search_steps(cases, ways.job.seed, few, map_tasks, should_stop, starts=starts)
    assert more is not None
    known = {f.case.number for f in more.by_case}
    return replace(
        result,
        best=more.best,
        by_case=(*more.by_case, *(f for f in result.by_case if f.case.number not in known)),
        evaluations=result.evaluations + more.evaluations,
        curve=(*result.curve, *((result.evaluations + n, s) for n, s in more.curve)),
    )


def _tuned(
    ways: Ways, opened: StepSearchResult | None, first: Sequence[Case]
) -> tuple[list[Found], list[tuple[int, int, DoesNotFit]]]:
    """The fastest shapes, and those that did not fit, at their best settings; and what still does not."""
    candidates: list[tuple[int, int, Ints, str]] = []
    unfit: Sequence[Case] = first
    if opened is not None:
        candidates = [
            (f.case.n_stages, f.case.n_replicas, f.layout.cells, f.how) for f in opened.by_case[:TUNED_SHAPES]
        ]
        unfit = opened.unfit
    largest = sorted(unfit, key=lambda c: (-c.n_stages * c.n_replicas, -c.n_stages))
    for case in largest[: TUNED_SHAPES if opened is not None else None]:
        candidates.append((case.n_stages, case.n_replicas, _widest(case), "devices by memory and place"))
    found: list[Found] = []
    errors: list[tuple[int, int, DoesNotFit]] = []
    for candidate in candidates:
        at = ways.tuned(*candidate)
        if isinstance(at, Found):
            found.append(at)
        else:
            errors.append((candidate[0], candidate[1], at))
    return sorted(found, key=lambda f: f.key), errors


def _widest(case: Case) -> Ints:
    """[R, S]: the devices with most memory, in the first row's order: where a cut is likeliest to fit."""
    n = case.n_stages * case.n_replicas
    memory = case.prices.memory_bytes
    row = case.grounds.rows[0][1]
    taken = np.argsort(-memory[row], kind="stable")[:n]
    return np.ascontiguousarray(row[np.sort(taken)].reshape(case.n_replicas, case.n_stages))


def _judged(ways: Ways, result: StepSearchResult, version: int) -> tuple[Found, Plan]:
    """The best layout as a plan; where the twin is only an estimate, the best of a few by the engine. It does
    not see what hides the keys of shared sequences: how many micro-batches are in flight is judged then."""
    few = result.by_case[: 1 if result.best.case.pricing.exact else JUDGED]
    plans = [(f, ways.plan(f, version)) for f in few]
    found, plan = min(plans, key=lambda fp: fp[1].predicted_step_s)
    if plan.split == "batch":
        return found, plan
    names = {name: i for i, name in enumerate(found.case.pricing.names)}
    cells = np.array([[names[name] for name in row] for row in plan.placement], dtype=np.int64)
    found = replace(found, layout=found.layout._replace(cells=cells))
    others = [(f, ways.plan(f, version, reorder=False)) for f in ways.at_other_depths(found)]
    return min([(found, plan), *others], key=lambda fp: fp[1].predicted_step_s)

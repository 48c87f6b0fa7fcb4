"""Why a plan is what it is: for every choice the alternative it beat, what bounds it, what more would bring.

Sentences for people, made of numbers from the engine and its twin. Chooses nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from scheduler.bottleneck import bottleneck, least_headroom, what_takes_long
from scheduler.cost import durations, predict
from scheduler.plan import Plan
from scheduler.plan_search import Chosen, Ways, taking_part
from scheduler.step_case import Found, even_shares, open_case, openings, place
from scheduler.step_kernels import Layout
from scheduler.step_seeds import grounds_of
from scheduler.step_time import layout_missing_bytes, layout_step_s
from scheduler.units import count, duration, size

TOLD = 8
"""Names, or shares, that a sentence lists; more are counted."""


def reasons(ways: Ways, chosen: Chosen) -> tuple[str, ...]:
    """A sentence, or a few, for each choice: shape, devices, setting, placement, cut, shares; then bounds."""
    plan = chosen.plan
    there = taking_part(ways.topology, plan)
    timeline = predict(plan, ways.model, ways.devices, there)
    worst = bottleneck(plan, ways.model, ways.devices, there)
    tightest = least_headroom(plan, ways.model, there)
    told = [
        _shape(ways, chosen),
        *_left_out(ways, chosen),
        *_local_steps(ways, chosen),
        *_shards(ways, plan),
        *_setting(ways, chosen),
        *_placement(chosen),
        *_cut(chosen.found),
        *_shares(chosen.found),
        worst.sentence(),
        what_takes_long(timeline, "stages" if plan.sequence_shards == 1 else "stages and shards"),
        *([tightest.sentence()] if tightest is not None else []),
        *_bound(chosen),
        *_faster_link(ways, chosen, worst.link),
        *_one_more(ways, chosen),
    ]
    return tuple(told)


def _engine_s(ways: Ways, found: Found) -> float:
    """The layout's step time, by the engine where the twin is only an estimate."""
    return found.step_s if found.case.pricing.exact else ways.plan(found, 0).predicted_step_s


def _shape(ways: Ways, chosen: Chosen) -> str:
    plan = chosen.plan
    nearest = sorted(((_engine_s(ways, f), f.case) for f in chosen.others[:4]), key=lambda sc: sc[0])
    against = [f"{case.n_stages} x {case.n_replicas}: {duration(seconds)}" for seconds, case in nearest]
    against += [""] * (len(chosen.others) - len(nearest))  # counted, not told
    against += [f"{s} x {r}: lacks memory on {e.device}" for s, r, e in chosen.unfit]
    told = "; ".join(against[:4])
    more = f" and {len(against) - 4} slower or unfit" if len(against) > 4 else ""
    what = f"{count(plan.n_stages, 'stage')} x {count(plan.n_replicas, 'replica')}"
    rest = f", against {told}{more}" if against else ""
    return f"{what}: {duration(plan.predicted_step_s)} a step predicted{rest}."


def _local_steps(ways: Ways, chosen: Chosen) -> Iterator[str]:
    local, plan = ways.job.local_steps, chosen.plan
    if local is not None and not plan.local_steps:
        yield "No local steps, though the job asks for them: one replica has nobody to exchange with."
    elif local is not None:
        yield (
            f"Replicas step alone; each weight's change is exchanged every {plan.local_steps} steps, a piece"
            " of all weights in each, beside the step."
        )


def _shards(ways: Ways, plan: Plan) -> Iterator[str]:
    if plan.sequence_shards == 1:
        return
    there = taking_part(ways.topology, plan)
    costs = durations(plan, ways.model, ways.devices, there)
    assert costs.rows is not None
    most = max(b - a for a, b in costs.rows.bounds)
    shards = f"shards of {most} positions"
    if plan.shard_sizes:
        equal_s = predict(replace(plan, shard_sizes=()), ways.model, ways.devices, there).duration_s
        listed = ", ".join(map(str, plan.shard_sizes[:TOLD])) + (" …" if plan.n_replicas > TOLD else "")
        shards = (
            f"shards of {listed} positions, longer where each costs less; equal ones would take"
            f" {duration(equal_s)}"
        )
    last = [costs.rows.handed_on_bytes(s, plan.n_replicas - 2) for s in range(plan.n_stages)]
    yield (
        f"Replicas share every sequence: {shards}; to the last of them go {size(max(last))}"
        " of keys and values a micro-batch, and as much comes back. The search took all shards to be alike;"
        " which pipeline holds which was then timed."
    )


def _left_out(ways: Ways, chosen: Chosen) -> Iterator[str]:
    if ways.job.asked_shape is not None:
        yield "The job asks for this number of stages and replicas."
    used = {name for pipeline in chosen.plan.placement for name in pipeline}
    names = [p.device for p in ways.devices if p.device not in used]
    if not names:
        return
    listed = ", ".join(names[:TOLD]) + (f" and {len(names) - TOLD} more" if len(names) > TOLD else "")
    if ways.job.asked_shape is not None:
        yield f"Left out: {listed}; the job needs no more."
        return
    more = [f for f in chosen.others if f.case.n_stages * f.case.n_replicas > len(used)]
    if more:
        f = more[0]
        theirs_s = _engine_s(ways, f)
        lead = duration(theirs_s - _engine_s(ways, chosen.found))
        yield (
            f"Left out: {listed}; the best plan found with more devices, "
            f"{f.case.n_stages} x {f.case.n_replicas}, takes {duration(theirs_s)}, {lead} more."
        )
    else:
        yield f"Left out: {listed}; no stages x replicas can use them too."


def _setting(ways: Ways, chosen: Chosen) -> Iterator[str]:
    setting, case = ways.setting(chosen.found.case), chosen.found.case
    if not setting.reason:
        return
    plain = ways.first_setting(case.n_stages, case.n_replicas)
    other = place(ways.case(case.n_stages, case.n_replicas, plain), chosen.found.layout.cells, "")
    instead = "does not fit" if other is None else f"takes {duration(other.step_s)}"
    yield f"Run so because {setting.reason}; as the job first has it, the same placement {instead}."


def _placement(chosen: Chosen) -> Iterator[str]:
    result, step_s = chosen.result, chosen.found.step_s
    if chosen.found.exhausted:
        yield f"All placements of this shape were tried ({result.evaluations} layouts in all)."
    else:
        early = ", ended early by its budget" if result.ended_early else ""
        judged = f"{result.evaluations} layouts judged{early}"
        yield f"The placement was found from '{chosen.found.how}', {judged}."
    if not chosen.found.case.pricing.exact:
        return
    for name, seconds in sorted(result.seeds_s.items(), key=lambda item: item[1])[:3]:
        lead = seconds - step_s
        verdict = "as fast" if lead <= 1e-9 * seconds else f"{duration(lead)} slower"
        yield f"Placed as {name}: {duration(seconds)} a step, {verdict}."


def _cut(found: Found) -> Iterator[str]:
    """Against an equal number of layers a stage."""
    n_layers = found.case.prices.forward_s.shape[1] - 1
    even = np.linspace(0, n_layers, found.case.n_stages + 1).round().astype(np.int64)
    if found.case.n_stages == 1 or np.array_equal(even, found.layout.cut):
        return
    sizes = ", ".join(map(str, np.diff(found.layout.cut).tolist()))
    other = _repriced(found, found.layout._replace(cut=even))
    yield f"Stages hold {sizes} layers; equal numbers of layers {other}."


def _shares(found: Found) -> Iterator[str]:
    shares = found.layout.shares
    if shares.min() == shares.max():
        return
    even = even_shares(found.case.micro_batches, found.case.n_replicas)
    listed = ", ".join(map(str, shares[:TOLD].tolist())) + (", …" if len(shares) > TOLD else "")
    if np.array_equal(np.sort(even), np.sort(shares)):
        yield (
            f"{found.case.micro_batches} micro-batches do not divide among {found.case.n_replicas} replicas: "
            f"they take {listed}."
        )
    else:
        other = _repriced(found, found.layout._replace(shares=even))
        yield f"Replicas take {listed} micro-batches, by their speeds; equal shares {other}."


def _repriced(found: Found, layout: Layout) -> str:
    tables = found.case.tables(layout.shares)
    if layout_missing_bytes(found.case.pricing, tables, layout) > 0:
        return "would not fit in memory"
    seconds = layout_step_s(found.case.pricing, tables, layout)
    return f"would take {duration(seconds)} a step"


def _bound(chosen: Chosen) -> Iterator[str]:
    """Nothing where cores or cards are shared: the bound knows neither."""
    if not chosen.found.case.pricing.exact:
        return
    step_s = chosen.found.step_s
    left = max(0.0, 1 - chosen.bound_s / step_s) if step_s else 0.0
    yield (
        f"No plan of the shapes and settings considered can take less than {duration(chosen.bound_s)} a step:"
        f" at most {left:.0%} is left to gain."
    )


def _faster_link(ways: Ways, chosen: Chosen, link: tuple[str, str] | None) -> Iterator[str]:
    """What twice the bandwidth brings where the slowest link is, between its regions and nothing moved."""
    if link is None or chosen.found.step_s <= 0 or not chosen.found.case.pricing.exact:
        return
    case = chosen.found.case
    region = {d.name: d.region or d.name for d in ways.topology.devices}
    regions = np.array([region[name] for name in case.pricing.names])
    a, b = region[link[0]], region[link[1]]
    between = np.outer(regions == a, regions == b) | np.outer(regions == b, regions == a)
    prices = case.prices._replace(bandwidth_Bps=np.where(between, 2.0, 1.0) * case.prices.bandwidth_Bps)
    pricing = replace(case.pricing, prices=prices)
    step_s = layout_step_s(pricing, case.tables(chosen.found.layout.shares), chosen.found.layout)
    where = f"inside {a}" if a == b else f"between {a} and {b}"
    gain = chosen.found.step_s - step_s
    if gain > 0.001 * step_s:
        yield f"Twice the bandwidth {where} would bring {duration(gain)} a step, nothing moved."
    else:
        yield f"Twice the bandwidth {where} would bring nothing."


def _one_more(ways: Ways, chosen: Chosen) -> Iterator[str]:
    """What a copy of the fastest device would bring, placed as the structured layouts would have it."""
    case = chosen.found.case
    if ways.job.asked_shape is not None or not case.pricing.exact:
        return
    p, n = case.prices, len(case.pricing.names)
    best = int(np.argmin(case.grounds.speeds))
    index = np.append(np.arange(n), best)
    latency_s, bandwidth_Bps = p.latency_s[np.ix_(index, index)], p.bandwidth_Bps[np.ix_(index, index)]
    nearest = np.where(np.arange(n) == best, np.inf, p.latency_s[best])
    if n > 1:  # the copy stands where the original stands: as near to it as its nearest
        peer = int(np.argmin(nearest))
        latency_s[best, n] = latency_s[n, best] = p.latency_s[best, peer]
        bandwidth_Bps[best, n] = bandwidth_Bps[n, best] = p.bandwidth_Bps[best, peer]
    else:
        return
    prices = p._replace(
        latency_s=latency_s,
        bandwidth_Bps=bandwidth_Bps,
        activation_codec=p.activation_codec[np.ix_(index, index)],
        gradient_codec=p.gradient_codec[np.ix_(index, index)],
        reduce_codec=p.reduce_codec[np.ix_(index, index)],
        activation_codec_s=p.activation_codec_s[:, index],
        gradient_codec_s=p.gradient_codec_s[:, index],
        reduce_codec_s=p.reduce_codec_s[:, index],
        forward_s=p.forward_s[index],
        backward_s=p.backward_s[index],
        optimizer_s=p.optimizer_s[index],
        memory_bytes=p.memory_bytes[index],
    )
    name = case.pricing.names[best]
    pricing = replace(case.pricing, names=(*case.pricing.names, f"{name}'"), prices=prices)
    region = {d.name: d.region for d in ways.topology.devices}
    grounds = grounds_of(pricing, [*(region[x] for x in case.pricing.names), region[name]])
    used = case.n_stages * case.n_replicas
    n_layers = p.forward_s.shape[1] - 1
    best_s = chosen.found.step_s
    how = ""
    for s, r in _just_larger(used, n + 1, n_layers, case.micro_batches):
        larger = replace(case, pricing=pricing, grounds=grounds, n_stages=s, n_replicas=r)
        found = open_case(larger, openings(larger))
        if found and found[0].step_s < best_s * (1 - 1e-9):
            best_s, how = found[0].step_s, f" ({s} x {r})"
    gain = chosen.found.step_s - best_s
    if how:
        yield f"One more device like {name} would bring at least {duration(gain)} a step{how}."
    else:
        yield f"One more device like {name} would bring nothing that is found at once."


def _just_larger(used: int, most: int, n_layers: int, micro_batches: int) -> Iterator[tuple[int, int]]:
    """Shapes of a few devices more than are used, as far as there are."""
    for n in range(used + 1, min(most, used + 3) + 1):
        for s in range(1, min(n, n_layers) + 1):
            if n % s == 0 and n // s <= micro_batches:
                yield s, n // s

"""A plan as plain values (what JSON has), and back, strictly: for files, for stores, for people's eyes."""

from __future__ import annotations

from dataclasses import MISSING, asdict, fields
from typing import Any, get_args

from compression.spec import codec_spec
from scheduler.plan import Plan, PlanError
from scheduler.plan_codecs import codecs_from_json
from scheduler.schedule import NAMES
from scheduler.sequence import Split

_NESTED = ("placement", "partition", "micro_batches", "shard_sizes", "reasons")


def plan_document(plan: Plan) -> dict[str, Any]:
    """The plan's fields by name."""
    return asdict(plan)


def plan_of_document(document: Any, source: str) -> Plan:
    """The plan that `document` describes: its own fields, or what stands under `plan`. PlanError, naming
    `source`, for anything that the engine could not rely on."""
    if isinstance(document, dict) and isinstance(document.get("plan"), dict):
        document = document["plan"]
    known = {f.name: f for f in fields(Plan)}
    needed = {n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING}
    if not isinstance(document, dict):
        raise PlanError(f"{source}: found a {type(document).__name__}, required a plan as a JSON object")
    if lacks := sorted(needed - set(document)):
        raise PlanError(
            f"{source}: found no {', '.join(lacks)}; required of a plan, as `sim run --json` prints it"
        )
    if unknown := sorted(set(document) - set(known)):
        raise PlanError(
            f"{source}: found an unknown key {unknown[0]!r}, required some of: {', '.join(known)}"
        )
    plan = Plan(**{k: _value(k, v, source) for k, v in document.items()})
    _check(plan, source)
    return plan


def _value(key: str, value: Any, source: str) -> Any:
    if key != "codecs":
        return _tuples(value) if key in _NESTED else value
    try:
        codecs = codecs_from_json(value)
        for _, names in codecs.named:
            for name in names:
                codec_spec(name)
    except (TypeError, ValueError, AttributeError) as e:
        raise PlanError(f"{source}: codecs: found {value!r}: {e}; required names of codecs by kind") from e
    return codecs


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def _check(plan: Plan, source: str) -> None:
    """What the engine relies on; whether devices and layers exist is for whoever uses it."""

    def require(good: bool, what: str, found: object) -> None:
        if not good:
            raise PlanError(
                f"{source}: {what}: found {found!r}; required stages x replicas of different names, layers "
                "from 0 on without a gap, one micro-batch or more a replica, numbers of 0 or more"
            )

    rows = plan.placement
    require(
        isinstance(rows, tuple) and bool(rows) and all(isinstance(r, tuple) for r in rows), "placement", rows
    )
    at = 0
    for cut in plan.partition:
        whole = isinstance(cut, tuple) and len(cut) == 2 and all(isinstance(x, int) for x in cut)
        require(whole and cut[0] == at and cut[1] > at, "partition", plan.partition)
        at = cut[1]
    require(all(len(r) == len(plan.partition) for r in rows), "placement", rows)
    names = [name for row in rows for name in row]
    require(all(isinstance(n, str) for n in names) and len(set(names)) == len(names), "placement", rows)
    for kind, found, required in plan.codecs.misfits(plan.n_stages, plan.n_replicas):
        raise PlanError(f"{source}: codecs.{kind}: found {found}; required {required}")
    mbs = plan.micro_batches
    require(len(mbs) == len(rows) and all(isinstance(m, int) and m >= 1 for m in mbs), "micro_batches", mbs)
    require(plan.schedule in NAMES, "schedule", plan.schedule)
    if plan.split not in get_args(Split) or (plan.split == "sequence" and len(set(mbs)) > 1):
        raise PlanError(
            f"{source}: split: found {plan.split!r} with micro_batches {mbs}; required batch, or sequence,"
            " whose replicas all take every micro-batch"
        )
    sizes = plan.shard_sizes
    whole = isinstance(sizes, tuple) and all(isinstance(n, int) and n >= 1 for n in sizes)
    if not whole or (sizes and (plan.split != "sequence" or len(sizes) != len(rows))):
        raise PlanError(
            f"{source}: shard_sizes: found {sizes!r}; required none, or with split sequence the positions of"
            " each replica's part, 1 or more"
        )
    for name in ("version", "warmup_extra", "micro_batch", "streams", "local_steps"):
        value = getattr(plan, name)
        require(isinstance(value, int) and value >= 0, name, value)

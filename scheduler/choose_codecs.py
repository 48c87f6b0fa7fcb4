"""Which codecs a plan uses: the job's, or under `auto` the least compression that is worth having.

`auto` starts from the most compression everywhere and gives every boundary and every stage's reduction
back what the predicted step does not need: what is off the critical path is left as it is. Codecs whose
expected error is above the job's budget are not considered. Pure; the choice comes with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from compression.grid import CodecError
from compression.spec import codec_spec
from scheduler.cost import IDENTITY as UNCOMPRESSED
from scheduler.cost import Codecs, WireBytes, flat_wire_bytes_of, wire_bytes_of
from scheduler.job import JobSpec
from scheduler.job_compression import Choice
from scheduler.plan import Plan
from scheduler.plan_codecs import IDENTITY, PlanCodecs
from scheduler.profile import ModelProfile
from scheduler.units import duration

LADDERS: dict[str, tuple[str, ...]] = {
    "activation": (IDENTITY, "fp16", "kbit", "kbit:bits=6", "kbit:bits=4"),
    "gradient": (IDENTITY, "fp16", "kbit:rounding=stochastic", "kbit:bits=6,rounding=stochastic"),
    "reduce": (IDENTITY, "kbit:rounding=stochastic", "kbit:bits=6,rounding=stochastic"),
}
"""From the least compression to the most. None of them remembers anything, so all work in one pass."""

SLACK = 0.01
"""By this share may the predicted step be longer than with the most compression everywhere."""

StepTime = Callable[[Plan], float]
"""Predicted seconds of a step of a plan, its codecs priced."""


def job_codecs(job: JobSpec, model: ModelProfile, otherwise: Codecs | None = None) -> Codecs:
    """What the job's codecs shrink traffic to, for plans that name none yet.

    Where the job asks for none, or leaves it to `auto`, traffic is priced as `otherwise` (IDENTITY).
    """
    c, base = job.compression, otherwise or UNCOMPRESSED

    def crossing(choice: Choice, price: WireBytes) -> WireBytes:
        return wire_bytes_of(choice.spec(), model, model.value_bytes) if choice.is_named else price

    return Codecs(
        crossing(c.activations, base.activation),
        crossing(c.backward, base.gradient),
        flat_wire_bytes_of(c.reduce.spec()) if c.reduce.is_named else base.reduce,
    )


def choose_codecs(job: JobSpec, plan: Plan, model: ModelProfile, step_time_s: StepTime) -> Plan:
    """`plan` with its codecs, and a reason for what was chosen; as it was where the job asks for none."""
    asked = {"activation": job.compression.activations, "gradient": job.compression.backward}
    names = {kind: _given(choice, plan.n_stages - 1) for kind, choice in asked.items()}
    names["reduce"] = _given(job.compression.reduce, plan.n_stages)
    chosen = replace(plan, codecs=_codecs(names))
    automatic = {
        kind: choice.auto.max_error
        for kind, choice in (*asked.items(), ("reduce", job.compression.reduce))
        if choice.auto is not None
    }
    if not automatic:
        return replace(chosen, predicted_step_s=step_time_s(chosen)) if any(names.values()) else plan
    shape = (model.micro_batch, model.sequence_length, job.shape.hidden)
    ladders = {kind: _ladder(LADDERS[kind], most, shape) for kind, most in automatic.items()}
    for kind in automatic:
        names[kind] = [IDENTITY] * (plan.n_stages - (kind != "reduce"))
    return _relax(plan, names, ladders, step_time_s)


def _given(choice: Choice, n: int) -> list[str]:
    """The job's codec `n` times; nothing for identity, which needs no name."""
    return [choice.spec().name] * n if choice.is_named else []


def _codecs(names: dict[str, list[str]]) -> PlanCodecs:
    kept = {k: tuple(v) if any(name != IDENTITY for name in v) else () for k, v in names.items()}
    return PlanCodecs(kept["activation"], kept["gradient"], kept["reduce"])


def _ladder(names: Sequence[str], most: float, shape: tuple[int, ...]) -> list[str]:
    """Those whose expected error is at most `most`, and that can take a boundary of `shape`."""
    fit = []
    for name in names:
        try:
            if codec_spec(name).relative_error(shape) <= most:
                fit.append(name)
        except CodecError:
            continue  # a group that does not divide this model's rows
    return fit


def _relax(
    plan: Plan, names: dict[str, list[str]], ladders: dict[str, list[str]], step_time_s: StepTime
) -> Plan:
    """From the most compression everywhere, give each link back what it does not need.

    From below one would stop where two links hold the step up alike, for neither alone shortens it.
    """

    def priced(kind: str = "", i: int = 0, name: str = "") -> float:
        tried = {**names, kind: [*names[kind][:i], name, *names[kind][i + 1 :]]} if kind else names
        return step_time_s(replace(plan, codecs=_codecs(tried)))

    free_s = priced()
    for kind, ladder in ladders.items():
        names[kind] = [ladder[-1]] * len(names[kind])
    most_s = priced() * (1 + SLACK)
    for kind, ladder in ladders.items():
        for i in range(len(names[kind])):
            names[kind][i] = next(name for name in ladder if priced(kind, i, name) <= most_s)
    codecs, step_s = _codecs(names), priced()
    return replace(
        plan,
        codecs=codecs,
        predicted_step_s=step_s,
        reasons=(*plan.reasons, _reason(codecs, free_s, step_s)),
    )


def _reason(codecs: PlanCodecs, free_s: float, step_s: float) -> str:
    chosen = [f"{kind} {', '.join(names)}" for kind, names in codecs.named if names]
    if not chosen:
        return f"No link is worth compressing: {duration(free_s)} a step without."
    return (
        f"Codecs, the least that shorten the step: {'; '.join(chosen)}; {duration(step_s)} a step predicted"
        f" against {duration(free_s)} without."
    )

"""Makes a plan from measurements: shapes of stages x replicas, placement by region, a balanced cut.

Every candidate is priced by the engine's predicted step time, and the plan says why it was
chosen. Decides only; measuring and carrying out are the shells' matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

from scheduler.bottleneck import bottleneck, least_headroom, what_takes_long
from scheduler.choose_codecs import choose_codecs, job_codecs
from scheduler.cost import Codecs, predict, profiles_by_name, step_time_s
from scheduler.describe import describe as describe
from scheduler.job import JobSpec
from scheduler.partition import DoesNotFit, partition
from scheduler.placement import pipelines_in_order, region_order, replicas_in_order
from scheduler.plan import Plan, PlanError, stage_of_layers
from scheduler.profile import DeviceProfile, ModelProfile
from scheduler.schedule import in_flight, stage_actions
from scheduler.settings import Setting, choices, priced
from scheduler.topology import Topology
from scheduler.tuning import Price, tune
from scheduler.units import count, duration

__all__ = ["PlanError", "describe", "make_plan", "plan_for", "split_micro_batches", "stage_of_layers"]


def make_plan(
    job: JobSpec,
    model: ModelProfile,
    devices: Sequence[DeviceProfile],
    topology: Topology,
    version: int,
    codecs: Codecs | None = None,
) -> Plan:
    """The plan with the shortest predicted step among those the job allows, with the codecs it asks for.

    `auto` tries every stages x replicas that uses all of `devices` (if none can be cut, one device
    fewer, and so on); a given parallelism takes the first devices in region order. With several of
    both, pipelines of neighbours and replica groups of neighbours are compared. `codecs` price what the
    job asks no codec for.
    Raises PlanError when devices, layers or micro-batches are too few, DoesNotFit for memory.
    """
    _require_inputs(job, model, devices, topology)
    codecs = job_codecs(job, model, codecs)
    boundary_bytes = max(x.boundary_bytes for x in model.layers)
    order = region_order(topology, [p.device for p in devices], codecs.activation(boundary_bytes))
    maker = _Maker(job, model, tuple(devices), topology, version, codecs)
    others: list[_Candidate | _Unfit]
    if job.parallelism == "auto":
        chosen, others, left_out = _best_shape(maker, order)
    else:
        stages, replicas = job.parallelism.stages, job.parallelism.replicas
        required = stages * replicas
        if len(order) < required:
            raise PlanError(
                f"found {count(len(order), 'device')}, required {required} for {stages} stages x "
                f"{replicas} replicas; let {required - len(order)} more join or set parallelism: auto"
            )
        _require_shape(job, model, stages, replicas)
        chosen, *slower = _fastest_first(maker.candidates(order[:required], stages, replicas))
        others = [*slower]
        left_out = order[required:]
    plan = _with_codecs(maker, chosen.plan)
    reasons = _reasons(maker, replace(chosen, plan=plan), others, left_out)
    return replace(plan, reasons=(*reasons, *plan.reasons))


def plan_for(
    placement: tuple[tuple[str, ...], ...],
    job: JobSpec,
    model: ModelProfile,
    devices: Sequence[DeviceProfile],
    topology: Topology,
    version: int,
    codecs: Codecs | None = None,
) -> Plan:
    """`placement`, decided by somebody else, as a plan: layers cut and knobs turned as `make_plan` would.
    Raises what `make_plan` raises."""
    _require_inputs(job, model, devices, topology)
    _require_shape(job, model, len(placement[0]), len(placement))
    maker = _Maker(job, model, tuple(devices), topology, version, job_codecs(job, model, codecs))
    return _with_codecs(maker, maker.priced(placement))


def _with_codecs(maker: _Maker, plan: Plan) -> Plan:
    def priced_s(p: Plan) -> float:
        return step_time_s(p, maker.model, maker.devices, maker.topology, maker.codecs)

    return choose_codecs(maker.job, plan, maker.model, priced_s)


def split_micro_batches(n_micro_batches: int, n_replicas: int) -> tuple[int, ...]:
    """Micro-batches of each replica; where they do not divide, the first replicas take one more."""
    each, more = divmod(n_micro_batches, n_replicas)
    return tuple(each + (r < more) for r in range(n_replicas))


def most_replicas(job: JobSpec) -> int:
    """As many as there are micro-batches, of one sample where the job leaves their size open."""
    return job.global_batch if job.micro_batch == "auto" else job.micro_batches


@dataclass(frozen=True, slots=True)
class _Candidate:
    plan: Plan
    arrangement: str
    """How the order of devices became a placement; '' where there is only one way."""

    @property
    def shape(self) -> str:
        how = f" ({self.arrangement})" if self.arrangement else ""
        return f"{self.plan.n_stages} x {self.plan.n_replicas}{how}"


@dataclass(frozen=True, slots=True)
class _Unfit:
    """A shape that was tried in vain."""

    stages: int
    replicas: int
    error: DoesNotFit


@dataclass(frozen=True, slots=True)
class _Maker:
    """Turns a placement into a priced candidate."""

    job: JobSpec
    model: ModelProfile
    devices: tuple[DeviceProfile, ...]
    topology: Topology
    version: int
    codecs: Codecs

    def candidates(self, order: Sequence[str], n_stages: int, n_replicas: int) -> list[_Candidate]:
        """One, or two where pipelines and replica groups compete for nearness. DoesNotFit if none fits."""
        near = {"": pipelines_in_order(order, n_stages, n_replicas)}
        if n_stages > 1 and n_replicas > 1:
            near = {
                "pipelines of neighbours": near[""],
                "replicas of a stage side by side": replicas_in_order(order, n_stages, n_replicas),
            }
        found: list[_Candidate] = []
        errors: list[DoesNotFit] = []
        for arrangement, placement in near.items():
            try:
                found.append(_Candidate(self.priced(placement), arrangement))
            except DoesNotFit as e:
                errors.append(e)
        if not found:
            raise min(errors, key=lambda e: e.missing_bytes)
        return found

    def priced(self, placement: tuple[tuple[str, ...], ...]) -> Plan:
        """Under the setting that fits and is fastest. DoesNotFit if none does."""
        plans: dict[Setting, Plan] = {}
        errors: list[DoesNotFit] = []

        def price(setting: Setting) -> Price:
            try:
                plans[setting] = self._plan(placement, setting)
            except DoesNotFit as e:
                errors.append(e)
                return Price(e.missing_bytes, inf)
            return Price(0, plans[setting].predicted_step_s)

        knobs = choices(self.job, self.topology, len(placement[0]), len(placement))
        setting, found = tune(knobs, price)
        if found.missing_bytes:
            raise min(errors, key=lambda e: e.missing_bytes)
        reasons = (f"Run so because {setting.reason}.",) if setting.reason else ()
        return replace(plans[setting], reasons=reasons)

    def _plan(self, placement: tuple[tuple[str, ...], ...], setting: Setting) -> Plan:
        n_stages, n_replicas = len(placement[0]), len(placement)
        micro_batches = split_micro_batches(self.job.global_batch // setting.micro_batch, n_replicas)
        model, devices, topology = priced(setting, self.model, self.devices, self.topology)
        by_name = {p.device: p for p in devices}
        saved = [
            in_flight(
                stage_actions(
                    setting.schedule,
                    stage=s,
                    n_stages=n_stages,
                    n_micro_batches=max(micro_batches),
                    first_rank=0,
                    warmup_extra=setting.warmup_extra,
                )
            )
            for s in range(n_stages)
        ]
        cut = partition(
            model,
            [[by_name[pipeline[s]] for pipeline in placement] for s in range(n_stages)],
            {d.name: d.memory_bytes for d in topology.devices},
            saved,
        )
        plan = Plan(self.version, placement, cut, micro_batches, **setting.knobs)
        timeline = predict(plan, model, devices, topology, self.codecs)
        return replace(plan, predicted_step_s=timeline.duration_s)


def _fastest_first(candidates: Sequence[_Candidate]) -> list[_Candidate]:
    return sorted(candidates, key=lambda c: (c.plan.predicted_step_s, c.plan.n_replicas))


def _best_shape(
    maker: _Maker, order: tuple[str, ...]
) -> tuple[_Candidate, list[_Candidate | _Unfit], tuple[str, ...]]:
    """(the fastest, the others, devices left out), with as many devices as can be used."""
    first_error: DoesNotFit | None = None
    for n in range(len(order), 0, -1):
        found: list[_Candidate] = []
        unfit: list[_Unfit] = []
        for stages in (s for s in range(1, n + 1) if n % s == 0):
            replicas = n // stages
            if stages > len(maker.model.layers) or replicas > most_replicas(maker.job):
                continue
            try:
                found += maker.candidates(order[:n], stages, replicas)
            except DoesNotFit as e:
                unfit.append(_Unfit(stages, replicas, e))
        if found:
            best, *rest = _fastest_first(found)
            return best, [*rest, *unfit], order[n:]
        if unfit and first_error is None:
            first_error = min((u.error for u in unfit), key=lambda e: e.missing_bytes)
    # One device can always be cut, so only memory can have stood in the way.
    assert first_error is not None
    raise first_error


def _require_inputs(
    job: JobSpec, model: ModelProfile, devices: Sequence[DeviceProfile], topology: Topology
) -> None:
    if not devices:
        raise PlanError("found no device, required at least 1; let a worker join")
    if len(model.layers) != job.n_layers:
        raise PlanError(f"found profiles of {len(model.layers)} layers, required {job.n_layers} for this job")
    profiles_by_name(model, devices)
    known = {d.name for d in topology.devices}
    strangers = sorted(p.device for p in devices if p.device not in known)
    if strangers:
        raise PlanError(
            f"found profiles of {', '.join(strangers)}, which no link was measured to; measure links"
        )
    size = job.profiled_micro_batch
    if job.global_batch % size:
        raise PlanError(f"found global_batch {job.global_batch}, required a multiple of micro_batch {size}")


def _require_shape(job: JobSpec, model: ModelProfile, stages: int, replicas: int) -> None:
    if stages > len(model.layers):
        raise PlanError(f"found {stages} stages, required at most {len(model.layers)}: one layer a stage")
    most = most_replicas(job)
    if replicas > most:
        raise PlanError(f"found {replicas} replicas, required at most {most}: one micro-batch a replica")


def _reasons(
    maker: _Maker, chosen: _Candidate, others: Sequence[_Candidate | _Unfit], left_out: Sequence[str]
) -> tuple[str, ...]:
    """A sentence a choice: shape, placement, cut, what bounds the step, memory."""
    plan = chosen.plan
    shape = f"{count(plan.n_stages, 'stage')} x {count(plan.n_replicas, 'replica')}"
    how = f", {chosen.arrangement}" if chosen.arrangement else ""
    reasons = [f"{shape}{how}: {duration(plan.predicted_step_s)} a step predicted{_against(others)}."]
    if maker.job.parallelism != "auto":
        reasons.append("The job asks for this number of stages and replicas.")
    if left_out:
        auto = maker.job.parallelism == "auto"
        why = "no stages x replicas can use them too" if auto else "the job needs no more"
        reasons.append(f"Left out: {', '.join(left_out)}; {why}.")
    reasons += plan.reasons
    reasons.append("Devices follow one another by region, near regions next to each other.")
    timeline = predict(plan, maker.model, maker.devices, maker.topology, maker.codecs)
    worst = bottleneck(plan, maker.model, maker.devices, maker.topology, maker.codecs)
    reasons.append(worst.sentence())
    reasons.append(what_takes_long(timeline))
    if len(set(plan.micro_batches)) > 1:
        reasons.append(
            f"{sum(plan.micro_batches)} micro-batches do not divide among {plan.n_replicas} replicas: "
            f"they take {', '.join(map(str, plan.micro_batches))}."
        )
    tightest = least_headroom(plan, maker.model, maker.topology)
    if tightest is not None:
        reasons.append(tightest.sentence())
    return tuple(reasons)


def _against(others: Sequence[_Candidate | _Unfit]) -> str:
    """`, against 2 x 2: 1.40 s, …`; the nearest three and what did not fit."""
    told = []
    for o in others[:4]:
        if isinstance(o, _Unfit):
            told.append(f"{o.stages} x {o.replicas}: lacks memory on {o.error.device}")
        else:
            told.append(f"{o.shape}: {duration(o.plan.predicted_step_s)}")
    more = f" and {len(others) - 4} slower or unfit" if len(others) > 4 else ""
    return f", against {'; '.join(told)}{more}" if told else ""

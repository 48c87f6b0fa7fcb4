"""From a loaded plan to the end: grant steps, commit them, evaluate and save at boundaries, drain.

`proceed` decides what comes after the steps that are done. A step is committed when every rank
has done it, in order and once; only then are its samples consumed. Pure.
"""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import median

from scheduler.checkpoint_layout import missing_layers
from scheduler.exit_codes import ExitCode
from scheduler.liveness import remember

from .commands import (
    Command,
    DiscardSave,
    Evaluate,
    Order,
    RecordEval,
    RecordStep,
    RunSteps,
    Save,
    WriteManifest,
)
from .events import Evaluated, LayerStored, ManifestWritten, Saved, SaveFailed, StepDone
from .records import Saving, State, Transition, drop, fail, finish, frozen, ignored, put, step_to, then

MAX_AHEAD = 64


def first_step(state: State) -> int:
    """The step this process of the run began at."""
    return state.restore.step if state.restore else 0


def recorded_steps(state: State) -> tuple[int, ...]:
    """Steps whose spans are wanted: one two thirds into what is left, and the last."""
    start, steps = first_step(state), state.options.steps
    return tuple(sorted({start + (steps - start) * 2 // 3, steps - 1}))


def boundary(state: State) -> int:
    """The next number of steps at which something else is to be done than steps."""
    o = state.options
    ends = [o.steps]
    ends += [(state.done // every + 1) * every for every in (o.eval_every, o.save_every) if every]
    return min(ends)


def _at(done: int, every: int) -> bool:
    return every > 0 and done > 0 and done % every == 0


def proceed(state: State, now: float) -> Transition:
    """What comes after `done` steps: an evaluation, a checkpoint, the end, or more steps."""
    o, done = state.options, state.done
    if state.draining:
        return _proceed_to_end(state, f"draining: {state.draining}")
    at_end = done >= o.steps
    can_evaluate = o.evaluate and state.n_eval_samples > 0
    if state.evaluated_at != done and can_evaluate and (at_end or _at(done, o.eval_every)):
        return step_to(
            state,
            f"evaluating after step {done}",
            *(Order(n, Evaluate(done)) for n in state.ranks),
            phase="evaluating",
            evaluations=frozen({}),
        )
    if done not in (state.saved_at, state.save_failed_at) and (at_end or _at(done, o.save_every)):
        return _save(state)
    if at_end:
        return finish(state, f"all {o.steps} steps are done")
    return _grant(state, now)


def _proceed_to_end(state: State, reason: str) -> Transition:
    if state.done < state.granted:
        return step_to(state, reason, phase="draining")
    if state.saved_at == state.done or state.done == 0:
        return finish(state, reason)
    return _save(state)


def _ahead(state: State) -> int:
    """Steps to grant beyond those committed: enough to cover `ahead_s`, at least two."""
    if not state.steps_s:
        return 2
    step_s = max(1e-6, median(state.steps_s))
    return min(MAX_AHEAD, max(2, math.ceil(state.options.ahead_s / step_s) + 1))


def _grant(state: State, now: float) -> Transition:
    ahead = _ahead(state)
    end = boundary(state)
    resumed = state.phase != "running"
    changes = {"progress_s": now} if resumed else {}
    reason = f"running to step {end}"
    stop = min(end, state.done + ahead)
    if stop <= state.granted or (state.granted - state.done > ahead // 2 and stop < end):
        return step_to(state, reason, phase="running", **changes)
    assert state.plan is not None
    record = tuple(s for s in recorded_steps(state) if state.granted <= s < stop)
    order = RunSteps(state.plan.version, state.granted, stop, record)
    return step_to(
        state, reason, *(Order(n, order) for n in state.ranks), phase="running", granted=stop, **changes
    )


# ---- steps


def on_step_done(state: State, event: StepDone, now: float) -> Transition:
    """Collects one rank's step; commits every step that all ranks have done."""
    if state.phase not in ("running", "draining") or event.worker not in state.ranks:
        return ignored(state, f"{event.worker} did a step that nobody waits for ({event.step})")
    if event.plan_version != state.plan_version:
        return ignored(
            state, f"{event.worker} did step {event.step} of plan {event.plan_version}, which is over"
        )
    if not state.done <= event.step < state.granted:
        return ignored(state, f"{event.worker} did step {event.step}, which is not granted")
    reports = state.pending.get(event.step, {})
    if event.worker in reports:
        return ignored(state, f"{event.worker} did step {event.step} twice")
    state = replace(state, pending=put(state.pending, event.step, put(reports, event.worker, event)))
    result = Transition(state, (), "")
    while len(result.state.pending.get(result.state.done, {})) == len(result.state.ranks):
        result = then(result, _commit(result.state, now))
        if result.state.phase == "failed":
            return result
    if result.state.done == state.done:
        return result
    return then(result, proceed(result.state, now))


def _commit(state: State, now: float) -> Transition:
    assert state.plan is not None
    plan, step, b = state.plan, state.done, state.options.global_batch
    reports = state.pending[step]
    last = [reports[plan.device(r)] for r in plan.group(plan.n_stages - 1)]
    tokens = sum(e.tokens for e in last)
    if tokens == 0:
        names = ", ".join(e.worker for e in last)
        return fail(
            state, ExitCode.WORKER_FAILED, f"step {step}: found no token counted by the last stages ({names})"
        )
    loss = sum(e.loss_sum for e in last) / tokens
    if not math.isfinite(loss):
        return fail(state, ExitCode.DIVERGED, f"step {step}: found a loss of {loss}, required a number")
    record = RecordStep(
        step=step,
        plan_version=plan.version,
        loss=loss,
        tokens=tokens,
        grad_norm=max(e.grad_norm for e in reports.values()),
        duration_s=max(e.duration_s for e in reports.values()),
        sent_bytes=sum(e.sent_bytes for e in reports.values()),
        raw_bytes=sum(e.raw_bytes for e in reports.values()),
        first_sample=step * b,
        end_sample=(step + 1) * b,
    )
    return step_to(
        state,
        f"step {step} is done",
        record,
        done=step + 1,
        pending=drop(state.pending, step),
        progress_s=now,
        steps_s=remember(state.steps_s, max(0.0, now - state.progress_s)),
        loss=loss,
    )


def overdue(state: State, now: float) -> Transition | None:
    """The end of a run whose step takes far longer than those before, or None."""
    if state.phase not in ("running", "draining") or state.granted <= state.done:
        return None
    limit = state.options.step.deadline_s(state.steps_s)
    waited = now - state.progress_s
    if waited <= limit:
        return None
    have = state.pending.get(state.done, {})
    late = ", ".join(n for n in state.ranks if n not in have)
    reason = f"step {state.done} is not done after {waited:.0f} s (limit {limit:.0f} s); waiting for {late}"
    return fail(state, ExitCode.STALLED, reason)


# ---- evaluation


def on_evaluated(state: State, event: Evaluated, now: float) -> Transition:
    """The evaluation is done when every rank of the last stage has answered."""
    if state.phase != "evaluating" or event.step != state.done or event.worker not in state.ranks:
        return ignored(state, f"{event.worker} sent an evaluation that nobody waits for")
    plan = state.plan
    assert plan is not None
    state = replace(state, evaluations=put(state.evaluations, event.worker, event))
    last = [plan.device(r) for r in plan.group(plan.n_stages - 1)]
    if not set(last) <= set(state.evaluations):
        return Transition(state, (), f"{event.worker} has evaluated")
    found = [state.evaluations[n] for n in last]
    tokens = sum(e.tokens for e in found)
    state = replace(state, evaluated_at=state.done)
    if tokens == 0:
        return then(Transition(state, (), "the evaluation saw no token"), proceed(state, now))
    loss = sum(e.loss_sum for e in found) / tokens
    state = replace(state, eval_loss=loss if math.isfinite(loss) else None)
    done = Transition(
        state, (RecordEval(state.done, loss, tokens),), f"eval loss {loss:.4f} after step {state.done}"
    )
    return then(done, proceed(state, now))


# ---- checkpoints


def _save(state: State) -> Transition:
    return step_to(
        state,
        f"saving after step {state.done}",
        *(Order(n, Save(state.done)) for n in state.ranks),
        phase="saving",
        saving=Saving(state.done),
    )


def on_stored(state: State, event: LayerStored) -> Transition:
    saving = state.saving
    if saving is None or saving.step != event.step:
        return ignored(
            state, f"{event.file.name} of step {event.step} was stored, but that step is not being saved"
        )
    saving = replace(saving, stored=put(saving.stored, event.file.name, event.file))
    return step_to(state, f"{event.file.name} is stored", saving=saving)


def on_saved(state: State, event: Saved, now: float) -> Transition:
    """Once all who have something to save did, and the store holds what they say, the manifest is written.

    Weights are replica 0's to save; with error feedback every rank has residuals of its own.
    """
    saving = state.saving
    if saving is None or saving.step != event.step or saving.writing or event.worker not in state.ranks:
        return ignored(state, f"{event.worker} saved step {event.step}, which is not being saved")
    plan = state.plan
    assert plan is not None
    saving = replace(saving, said=put(saving.said, event.worker, event.files))
    state = replace(state, saving=saving)
    saving_replicas = plan.n_replicas if plan.codecs.has_residuals else 1
    savers = [plan.device(plan.rank(r, s)) for r in range(saving_replicas) for s in range(plan.n_stages)]
    waiting = [n for n in savers if n not in saving.said]
    if waiting:
        return Transition(state, (), f"{event.worker} has saved; waiting for {', '.join(waiting)}")
    trouble = _unstored(saving, state.options.n_layers)
    if trouble:
        return on_save_failed(state, SaveFailed(saving.step, trouble), now)
    names = sorted({f.name for files in saving.said.values() for f in files})
    command = WriteManifest(
        step=saving.step,
        files=tuple(saving.stored[n] for n in names),
        next_sample=state.done * state.options.global_batch,
        loss=state.loss,
        eval_loss=state.eval_loss if state.evaluated_at == state.done else None,
    )
    return step_to(
        state, f"all of step {saving.step} is stored", command, saving=replace(saving, writing=True)
    )


def _unstored(saving: Saving, n_layers: int) -> str:
    """'' or how what the ranks say they put differs from what the store holds."""
    names: set[str] = set()
    for worker, files in saving.said.items():
        for f in files:
            names.add(f.name)
            held = saving.stored.get(f.name)
            if held is None:
                return f"{worker} says it put {f.name}, the store does not hold it"
            if held != f:
                return (
                    f"{f.name}: {worker} says sha256 {f.sha256[:12]}, {f.n_bytes} bytes; "
                    f"the store holds {held.sha256[:12]}, {held.n_bytes} bytes"
                )
    missing = missing_layers(names, n_layers)
    return f"nobody put the layers {', '.join(map(str, missing))}" if missing else ""


def on_save_failed(state: State, event: SaveFailed, now: float) -> Transition:
    """The run goes on without this checkpoint, loudly; unless it was to be the last."""
    saving = state.saving
    if saving is None or saving.step != event.step:
        return ignored(state, f"a checkpoint that is not being saved failed: {event.reason}")
    last = bool(state.draining) or state.done >= state.options.steps
    commands: tuple[Command, ...] = (DiscardSave(event.step),)
    state = replace(state, saving=None, save_failed_at=event.step)
    reason = f"the checkpoint of step {event.step} failed: {event.reason}"
    if last:
        return then(Transition(state, commands), fail(state, ExitCode.CHECKPOINT_WRITE, reason))
    return then(Transition(state, commands, f"{reason}; the run goes on"), proceed(state, now))


def on_manifest(state: State, event: ManifestWritten, now: float) -> Transition:
    saving = state.saving
    if saving is None or saving.step != event.step:
        return ignored(state, f"a manifest of step {event.step} was written that nobody waits for")
    state = replace(state, saving=None, saved_at=event.step)
    return then(Transition(state, (), f"step {event.step} is saved"), proceed(state, now))

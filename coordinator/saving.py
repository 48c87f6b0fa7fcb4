"""How a checkpoint comes about: ranks put files, the store holds them, the manifest is last. Pure."""

from __future__ import annotations

from dataclasses import replace

from scheduler.checkpoint_layout import missing_layers
from scheduler.exit_codes import ExitCode

from .commands import Command, DiscardSave, WriteManifest
from .drive import proceed
from .events import LayerStored, ManifestWritten, Saved, SaveFailed
from .records import Restore, Saving, State, Transition, fail, ignored, put, step_to, then


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

    Weights are replica 0's to save; with error feedback every rank has residuals of its own, with local
    steps weights of its own.
    """
    saving = state.saving
    if saving is None or saving.step != event.step or saving.writing or event.worker not in state.ranks:
        return ignored(state, f"{event.worker} saved step {event.step}, which is not being saved")
    plan = state.plan
    assert plan is not None
    saving = replace(saving, said=put(saving.said, event.worker, event.files))
    state = replace(state, saving=saving)
    saving_replicas = plan.n_replicas if plan.codecs.has_residuals or plan.local_steps else 1
    savers = [plan.device(plan.rank(r, s)) for r in range(saving_replicas) for s in range(plan.n_stages)]
    waiting = [n for n in savers if n not in saving.said]
    if waiting:
        return Transition(state, (), f"{event.worker} has saved; waiting for {', '.join(waiting)}")
    trouble = _unstored(saving, state.options.n_layers)
    if trouble:
        return on_save_failed(state, SaveFailed(saving.step, trouble), now)
    command = WriteManifest(
        step=saving.step,
        files=tuple(saving.stored[n] for n in _named(saving)),
        next_sample=state.done * state.options.global_batch,
        loss=state.loss,
        eval_loss=state.eval_loss if state.evaluated_at == state.done else None,
    )
    return step_to(
        state, f"all of step {saving.step} is stored", command, saving=replace(saving, writing=True)
    )


def _named(saving: Saving) -> list[str]:
    """The files that the ranks say they put."""
    return sorted({f.name for files in saving.said.values() for f in files})


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
    files = tuple(saving.stored[n] for n in _named(saving))
    rated = state.eval_loss if state.evaluated_at == state.done else None
    checkpoint = Restore(event.step, files, rated, state.loss)
    state = replace(state, saving=None, saved_at=event.step, checkpoint=checkpoint)
    return then(Transition(state, (), f"step {event.step} is saved"), proceed(state, now))

"""Combinations of a job's keys that cannot be, though each key alone is fine. Pure predicates.

Knows neither files nor lines; `job.py` puts those to what is found here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from scheduler.job_compression import misfits
from scheduler.marked_yaml import Path
from scheduler.mixers import MIXERS
from scheduler.pattern import PatternError
from scheduler.presets import PRESETS

if TYPE_CHECKING:  # job.py imports this module
    from scheduler.job import JobSpec, ModelSpec

BYTE_VOCAB = 257
"""Tokens of the `bytes` tokenizer: 256 byte values and the end of a document."""


def impossible(job: JobSpec) -> Iterator[tuple[Path, str, str]]:
    """Combinations that cannot be, each as (path, found, required)."""
    try:
        model = job.shape
    except KeyError as e:
        yield ("model", "preset"), str(e.args[0]), f"one of: {', '.join(PRESETS)}"
        return
    try:
        model.blocks  # noqa: B018 - parsed here, where what is wrong can be told
    except PatternError as e:
        yield ("model", "layers"), e.found, e.required
        return
    if job.global_batch % job.profiled_micro_batch:
        yield (
            ("global_batch",),
            f"{job.global_batch}, which micro_batch {job.micro_batch} does not divide",
            f"a multiple of {job.micro_batch}",
        )
    yield from _impossible_parallelism(model, job)
    yield from _impossible_shape(model, job)
    yield from _impossible_split(model, job)
    yield from misfits(job.compression, (job.profiled_micro_batch, job.sequence_length, model.hidden))
    yield from _impossible_momentum(job)
    yield from _impossible_local_steps(job)
    if job.eval_every and (job.data.held_out == 0 or job.data.eval_samples == 0):
        key = "held_out" if job.data.held_out == 0 else "eval_samples"
        yield ("data", key), f"0 although eval_every is {job.eval_every}", "more than 0, or eval_every: 0"


def _impossible_parallelism(model: ModelSpec, job: JobSpec) -> Iterator[tuple[Path, str, str]]:
    if job.asked_shape is None:
        if job.parallelism != "auto" and "replicas" in job.parallelism.model_fields_set:
            yield ("parallelism", "replicas"), "replicas without stages", "both, or neither: then all is open"
        return
    stages, replicas = job.asked_shape
    split = job.splits[-1]  # of two the one that allows more
    most = job.sharing(split).most_replicas
    if replicas > most and split == "batch":
        yield (
            ("parallelism", "replicas"),
            f"{replicas} replicas for {most} micro-batches a step",
            f"at most {most} (global_batch / micro_batch), so that each has work",
        )
    elif replicas > most:
        found = f"{replicas} replicas for sequences of {most} positions"
        yield ("parallelism", "replicas"), found, f"at most {most}, so that each has one"
    if stages > model.depth + 2:
        yield (
            ("parallelism", "stages"),
            f"{stages} stages for {model.depth + 2} layers",
            f"at most {model.depth + 2}: the embedding, {model.depth} blocks, the head",
        )


def why_undivided(job: JobSpec) -> str:
    """Why the job's replicas cannot share sequences, each at its own positions; '': they can."""
    for number, block in enumerate(job.shape.blocks):
        if misfit := next((part for part in block if part.undivided), None):
            return f"block.{number:02d} has {misfit.text!r}, which {misfit.undivided}"
    if job.data.documents == "apart":
        return "its documents are kept apart"
    return "replicas step alone (local_steps)" if job.local_steps is not None else ""


def _impossible_split(model: ModelSpec, job: JobSpec) -> Iterator[tuple[Path, str, str]]:
    if job.split == "batch":  # or left open
        return
    for number, block in enumerate(model.blocks):
        if misfit := next((part for part in block if part.undivided), None):
            why = f"{misfit.text!r}, which {misfit.undivided}"
            yield (
                ("parallelism", "split"),
                f"sequence for a model whose block.{number:02d} has {why}",
                "attention to all earlier positions or to a window of them, beside parts that look at one"
                " position each; or split: batch",
            )
            return
    if job.data.documents == "apart":
        yield (
            ("data", "documents"),
            "apart beside parallelism.split sequence, whose shards see all earlier positions",
            "joined, or split: batch",
        )
    if job.local_steps is not None:
        yield (
            ("local_steps",),
            "it beside parallelism.split sequence, whose replicas need the same weights",
            "no local_steps, or split: batch",
        )


def _impossible_momentum(job: JobSpec) -> Iterator[tuple[Path, str, str]]:
    momentum, path = job.compression.reduce.momentum, ("compression", "reduce", "momentum")
    for k, link in enumerate(job.compression.links):
        if link.reduce is not None and (momentum is not None or link.reduce.momentum is not None):
            yield (
                ("compression", "links", k, "reduce"),
                "an exception although momentum is exchanged somewhere",
                "compression.reduce alone: all stages exchange momentum or none, for its norm is one",
            )
    if momentum is None:
        return
    if job.optimizer.name != "adamw":
        yield path, f"it beside optimizer {job.optimizer.name}", "optimizer.name adamw, whose momentum it is"
    if momentum.warmup_steps >= job.steps:
        yield (
            (*path, "warmup_steps"),
            f"{momentum.warmup_steps} for a run of {job.steps} steps, which so never compresses",
            f"at most {job.steps - 1}; a sixth of the run, {max(1, job.steps // 6)}, is a good start",
        )
    if job.asked_shape is not None and job.asked_shape[1] == 1:
        yield (
            path,
            "it with parallelism.replicas 1, which exchanges no gradients of weights",
            "2 replicas or more, or compression.reduce: identity",
        )


def _impossible_local_steps(job: JobSpec) -> Iterator[tuple[Path, str, str]]:
    local, reduce = job.local_steps, job.compression.reduce
    if local is None:
        return
    if local.every > job.steps:
        yield (
            ("local_steps", "every"),
            f"{local.every} for a run of {job.steps} steps, in which most weights are never exchanged",
            f"at most {job.steps}, and better a tenth of it",
        )
    if job.asked_shape is not None and job.asked_shape[1] == 1:
        yield (
            ("local_steps",),
            "it with parallelism.replicas 1, whose steps are local anyway",
            "2 replicas or more, or no local_steps",
        )
    path = ("compression", "reduce", reduce.family)
    if reduce.auto is not None or reduce.momentum is not None:
        why = "is left open" if reduce.auto is not None else "goes with every step"
        yield (
            path,
            f"{reduce.family} beside local_steps, which {why}",
            "identity, feedback, topk, kbit or fp16",
        )
    elif job.shape.tied and getattr(getattr(reduce, reduce.family), "rounding", "") == "stochastic":
        yield (
            (*path, "rounding"),
            "stochastic beside local_steps and a tied weight, whose two copies must round alike",
            "nearest, or model.tied: false",
        )
    for k, link in enumerate(job.compression.links):
        if link.reduce is not None:
            yield (
                ("compression", "links", k, "reduce"),
                "an exception beside local_steps",
                "compression.reduce alone: both ends of a tied weight go by one codec",
            )


def _impossible_shape(model: ModelSpec, job: JobSpec) -> Iterator[tuple[Path, str, str]]:
    kv_heads = model.kv_heads or model.heads
    for part in dict.fromkeys(part for block in model.blocks for part in block):
        for found, required in part.misfits(model):
            key = "layers"
            if not part.model_fields_set:  # it is the model's own widths that do not go together
                key = "kv_heads" if "key-value" in found else "heads"
            yield ("model", key), found, required
        samples = 1 if job.micro_batch == "auto" else job.micro_batch
        for found, required in part.misfits_of_rows(samples * job.sequence_length):
            yield ("model", "layers"), found, required
        if job.data.documents == "apart" and not part.keeps_documents_apart:
            can = sorted(name for name, kind in MIXERS.items() if kind().keeps_documents_apart)
            yield (
                ("model", "layers"),
                f"{part.text!r}, which goes on from one document to the next, with data.documents: apart",
                f"parts that begin anew ({', '.join(can)}; no butterfly), or data.documents: joined",
            )
        if not part.is_causal:
            yield (
                ("model", "layers"),
                f"{part.text!r}, which sees later positions",
                "parts that see none: the job trains on the next token",
            )
    if model.family == "gpt2" and kv_heads != model.heads and model.heads % kv_heads == 0:
        yield (
            ("model", "kv_heads"),
            f"{kv_heads} key-value heads in family gpt2, whose {model.heads} heads each have their own",
            "kv_heads equal to heads, or family: llama",
        )
    if model.max_positions is not None and job.sequence_length > model.max_positions:
        yield (
            ("sequence_length",),
            f"{job.sequence_length}, more than the model's {model.max_positions} positions",
            f"at most {model.max_positions}, or a larger model.max_positions",
        )
    if model.vocab is not None and job.data.tokenizer == "bytes" and model.vocab < BYTE_VOCAB:
        yield (
            ("model", "vocab"),
            f"{model.vocab} for the byte tokenizer",
            f"at least {BYTE_VOCAB} (256 bytes and the end of a document)",
        )

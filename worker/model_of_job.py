"""The model that a job means on this worker: its shape, filled from the data and the weights it names."""

from __future__ import annotations

from pathlib import Path

from scheduler.job import JobSpec, ModelSpec
from worker.model import Layer, ModelError, build_layers, initialize
from worker.model.huggingface import check_config, load_layer, read_config


def model_of(job: JobSpec, vocab: int, base_dir: Path) -> ModelSpec:
    """`job.model` with `vocab` and positions filled in. Raises ModelError where data and model disagree."""
    model = job.shape
    fill: dict[str, int] = {}
    if model.vocab is None:
        fill["vocab"] = vocab
    elif model.vocab < vocab:
        raise ModelError(
            f"model.vocab: found {model.vocab}, required at least the tokenizer's {vocab}; "
            "name the tokenizer that the model was made with"
        )
    if model.max_positions is None and model.family == "gpt2":
        fill["max_positions"] = job.sequence_length
    model = model.model_copy(update=fill)
    if model.weights is not None:
        check_config(model, read_config(base_dir / model.weights))
    return model


def fresh_layers(job: JobSpec, model: ModelSpec, start: int, stop: int, base_dir: Path) -> list[Layer]:
    """Layers [start, stop) with the weights that training starts from: drawn from the seed, or loaded."""
    layers = build_layers(model, start, stop)
    for i, layer in enumerate(layers):
        if model.weights is None:
            initialize(layer, job.seed, start + i)
        else:
            load_layer(base_dir / model.weights, model, layer, start + i)
    return layers

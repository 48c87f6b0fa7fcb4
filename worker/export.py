"""A finished checkpoint as a model: written for `transformers`, or asked to continue a text.

Reads the coordinator's checkpoint directory, checking every hash; trains nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from scheduler.checkpoint_layout import MANIFEST, Manifest, ManifestError, parse_manifest, weights_file
from scheduler.exit_codes import ExitCode
from scheduler.job import JobError, JobSpec, ModelSpec, job_from_json
from scheduler.reasons import reason_of
from worker.checkpoint import LayerFileError, check, from_bytes, load_weights
from worker.data import DataError
from worker.generate import generate
from worker.model import ModelError, build_layers
from worker.model.huggingface import save_pretrained
from worker.model_of_job import model_of
from worker.tokenizer import Tokenizer, open_tokenizer

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
)


class ExportError(Exception):
    """A checkpoint that cannot be read or exported: what was found, what is required; `code` to exit with."""

    def __init__(self, message: str, code: ExitCode = ExitCode.CHECKPOINT_CORRUPT) -> None:
        super().__init__(message)
        self.code = code


@contextmanager
def _as_export_errors() -> Iterator[None]:
    """What goes wrong inside, as ExportError with the code of its kind."""
    try:
        yield
    except DataError as e:
        raise ExportError(f"{e}; --data-dir names it", ExitCode.DATA) from e
    except ModelError as e:
        raise ExportError(str(e), ExitCode.MODEL) from e
    except (OSError, ManifestError, LayerFileError, JobError) as e:
        raise ExportError(str(e)) from e


def export_checkpoint(checkpoint: Path, target: Path, data_dir: Path) -> None:
    """Write config.json, model.safetensors and the tokenizer's files to `target`. Raises ExportError."""
    with _as_export_errors():
        manifest, job, model, _ = _open(checkpoint, data_dir)
        states = {i: _layer(checkpoint, manifest, i) for i in range(model.depth + 2)}
        save_pretrained(target, model, states)
    source = data_dir / job.data.tokenizer
    for name in TOKENIZER_FILES if source.is_dir() else ():
        if (source / name).exists():
            shutil.copy2(source / name, target / name)


def continue_text(
    checkpoint: Path,
    prompt: str,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    seed: int,
    data_dir: Path,
) -> str:
    """The prompt and what the model writes after it, at most as long as the model has positions."""
    with _as_export_errors():
        manifest, _, model, tokenizer = _open(checkpoint, data_dir)
        layers = build_layers(model, 0, model.depth + 2)
        for i, layer in enumerate(layers):
            load_weights(layer, _layer(checkpoint, manifest, i), weights_file(i))
        ids = tokenizer.encode(prompt)
        if not ids:
            raise ExportError("found an empty prompt, required at least one token")
        room = (model.max_positions or len(ids) + max_new_tokens) - len(ids)
        rng = torch.Generator().manual_seed(seed)
        new = generate(layers, ids, min(max_new_tokens, max(room, 1)), temperature, top_k, rng)
        return tokenizer.decode(ids + new)


def _open(checkpoint: Path, data_dir: Path) -> tuple[Manifest, JobSpec, ModelSpec, Tokenizer]:
    path = checkpoint / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as e:
        raise ExportError(
            f"{checkpoint}: found no {MANIFEST} to read ({reason_of(e)}); required a whole checkpoint's "
            "directory, like STATE/checkpoints/step-000200"
        ) from e
    manifest = parse_manifest(text, str(path))
    job = job_from_json(manifest.job_json, str(path))
    tokenizer = open_tokenizer(job.data.tokenizer, data_dir)
    return manifest, job, model_of(job, tokenizer.vocab, data_dir), tokenizer


def _layer(checkpoint: Path, manifest: Manifest, index: int) -> dict[str, Tensor]:
    name = weights_file(index)
    promised = {f.name: f for f in manifest.files}.get(name)
    if promised is None:
        raise LayerFileError(f"{checkpoint}: found no {name} in its manifest")
    data = (checkpoint / name).read_bytes()
    check(data, promised)
    return from_bytes(data, name)

"""Weights in and out in Hugging Face's layout: a directory of config.json and safetensors.

Loading reads one layer at a time, so that a stage never holds another stage's weights. Knows no
tokenizer, no hub and no network. Every failure is a HuggingFaceError that names the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from scheduler.job import ModelSpec
from worker.model.huggingface_config import (
    Config,
    HuggingFaceError,
    check_config,
    config_of,
    spec_from_config,
)
from worker.model.huggingface_names import PREFIX, Piece, Source, sources
from worker.model.layer import Layer

__all__ = [
    "HuggingFaceError",
    "check_config",
    "load_layer",
    "read_config",
    "save_pretrained",
    "spec_from_config",
]

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_JSON_BYTES = 64 << 20
"""The largest JSON file that is read; the index of a model of 10,000 layers takes about 10 MB."""
_FLOATS = ("F16", "BF16", "F32", "F64")


def read_config(directory: str | Path) -> dict[str, Any]:
    """`directory`/config.json, decoded."""
    return _read_json(Path(directory) / "config.json")


@torch.no_grad()
def load_layer(directory: str | Path, model: ModelSpec, layer: Layer, index: int) -> None:
    """Copy the weights of layer `index` of `model` (resolved) from `directory` into `layer`, in place.

    They take the dtype and device that the layer has. Raises HuggingFaceError if a file is missing or
    broken, if config.json is another model's, if a tensor is missing or has another shape.
    """
    check_config(model, read_config(directory))
    parameters = dict(layer.named_parameters(remove_duplicate=False))
    with _Weights(Path(directory), PREFIX[model.family]) as weights:
        for source in sources(model, index):
            for piece in source.pieces:
                piece.into(parameters[source.own], weights.get(piece))


def save_pretrained(
    directory: str | Path,
    model: ModelSpec,
    state_by_layer: Mapping[int, Mapping[str, Tensor]],
    source: Config | None = None,
) -> None:
    """Write config.json and model.safetensors, which `transformers` loads.

    `state_by_layer[index]` is the state_dict of each of the model's layers; `source` the configuration
    that the weights began from, for its special tokens. Each file is written beside its place and moved
    there, the configuration last. Raises HuggingFaceError for a missing layer or tensor, another shape,
    a tied head that is not the embedding's, or a file that cannot be written.
    """
    directory = Path(directory)
    absent = sorted(set(range(model.depth + 2)) - set(state_by_layer))
    if absent:
        raise HuggingFaceError(
            f"{directory}: found no state for layers {absent}; required all of 0 .. {model.depth + 1}"
        )
    tensors: dict[str, Tensor] = {}
    for index in range(model.depth + 2):
        for entry in sources(model, index):
            own = _own(directory, entry, index, state_by_layer[index])
            for piece in entry.pieces:
                theirs = piece.out_of(own).contiguous()
                if piece.name in tensors:
                    _check_tied(directory, tensors[piece.name], theirs)
                else:
                    tensors[piece.name] = theirs
    text = json.dumps(config_of(model, source), indent=2) + "\n"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # The format is what transformers asks for before it reads any tensor.
        _write(directory / SINGLE, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
        _write(directory / "config.json", lambda path: path.write_text(text, encoding="utf-8"))
    except (OSError, SafetensorError) as e:
        raise HuggingFaceError(f"{directory}: the model could not be written: {e}") from e


class _Weights:
    """The tensors of a directory, read one by one; files are opened when a tensor in them is asked for."""

    def __init__(self, directory: Path, prefix: str) -> None:
        self._directory, self._prefix = directory, prefix
        self._open: dict[str, Any] = {}
        self._files = ExitStack()
        self._index: dict[str, Any] | None = None
        if not (directory / SINGLE).is_file():
            if not (directory / INDEX).is_file():
                raise HuggingFaceError(
                    f"{directory}: found neither {SINGLE} nor {INDEX}; required one of them"
                )
            self._index = _read_json(directory / INDEX).get("weight_map")
            if not isinstance(self._index, dict):
                raise HuggingFaceError(
                    f"{directory / INDEX}: found no weight_map; required one, name -> file"
                )

    def __enter__(self) -> _Weights:
        return self

    def __exit__(self, *exception: object) -> None:
        self._files.close()

    def get(self, piece: Piece) -> Tensor:
        """The tensor of `piece`, whose shape is looked at before it is read."""
        file, name = self._find(piece.name)
        opened = self._opened(file)
        try:
            found = opened.get_slice(name)
            shape, dtype = tuple(found.get_shape()), found.get_dtype()
            if shape != piece.shape or dtype not in _FLOATS:
                raise HuggingFaceError(
                    f"{self._directory / file}: {name}: found {dtype} of shape {shape};"
                    f" required floats ({', '.join(_FLOATS)}) of shape {piece.shape}"
                )
            tensor: Tensor = opened.get_tensor(name)
        except SafetensorError as e:
            raise _broken(self._directory / file, e) from e
        return tensor

    def _find(self, name: str) -> tuple[str, str]:
        """(file, name) of a tensor, which may be stored without its prefix."""
        names = (name, name.removeprefix(self._prefix))
        for spelling in names:
            if self._index is not None and spelling in self._index:
                return self._plain(self._index[spelling]), spelling
            if self._index is None and spelling in self._opened(SINGLE).keys():  # noqa: SIM118 - no mapping
                return SINGLE, spelling
        place = self._directory / (SINGLE if self._index is None else INDEX)
        raise HuggingFaceError(f"{place}: {name}: found no such tensor; required by the model")

    def _plain(self, file: object) -> str:
        """A file name out of the index, which must not lead out of the directory."""
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise HuggingFaceError(
                f"{self._directory / INDEX}: found the file {file!r}; required a safetensors file beside it"
            )
        return file

    def _opened(self, file: str) -> Any:
        if file not in self._open:
            path = self._directory / file
            if not path.is_file():
                raise HuggingFaceError(f"{path}: found no such file; required: {INDEX} names it")
            try:
                self._open[file] = self._files.enter_context(safe_open(path, framework="pt", device="cpu"))
            except (SafetensorError, OSError) as e:
                raise _broken(path, e) from e
        return self._open[file]


def _own(directory: Path, entry: Source, index: int, state: Mapping[str, Tensor]) -> Tensor:
    """Our tensor for `entry`, on the CPU."""
    if entry.own not in state:
        raise HuggingFaceError(
            f"{directory}: layer {index}: found no {entry.own}; required, found {sorted(state)}"
        )
    own = state[entry.own].detach().cpu()
    if tuple(own.shape) != entry.shape:
        raise HuggingFaceError(
            f"{directory}: layer {index}: {entry.own}: found shape {tuple(own.shape)}; required {entry.shape}"
        )
    return own


def _check_tied(directory: Path, embedding: Tensor, head: Tensor) -> None:
    """The copies of a tied weight step together, but devices round differently; beyond that they are two."""
    if not torch.equal(embedding, head):
        apart = float((embedding - head).abs().max())
        if not apart <= 1e-3 * float(embedding.abs().max()):
            raise HuggingFaceError(
                f"{directory}: found a tied head that is up to {apart:.3g} from the embedding; required the"
                " same: save both from one step, or train with model.tied false"
            )


def _write(path: Path, write: Any) -> None:
    """Have `write` fill a file beside `path`, then move it there: never half a file under its name."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(beside)
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        size = path.stat().st_size
        if size > _JSON_BYTES:
            raise HuggingFaceError(f"{path}: found {size} bytes; required at most {_JSON_BYTES}")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise HuggingFaceError(f"{path}: found no such file; required in Hugging Face's layout") from None
    except OSError as e:
        raise HuggingFaceError(f"{path}: cannot be read: {e}") from e
    except (ValueError, RecursionError) as e:
        raise HuggingFaceError(f"{path}: found text that is not JSON ({e})") from None
    if not isinstance(value, dict):
        raise HuggingFaceError(f"{path}: found {type(value).__name__}; required a JSON object")
    return value


def _broken(path: Path, error: Exception) -> HuggingFaceError:
    return HuggingFaceError(
        f"{path}: the file is truncated, corrupted or no safetensors file ({error}); fetch it again"
    )

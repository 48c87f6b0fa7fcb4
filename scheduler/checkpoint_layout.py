"""Where things lie in a checkpoint, and which checkpoints are kept. Pure: names and choices, no files.

    checkpoints/step-000123/layer-0000.safetensors            weights of layer 0
    checkpoints/step-000123/layer-0000.optimizer.safetensors  its optimizer state
    checkpoints/step-000123/layer-0000.residual-1.safetensors what replica 1's error feedback still owes
    checkpoints/step-000123/layer-0000.local-1.safetensors    what replica 1 alone knows, with local steps
    checkpoints/step-000123/manifest.json                     written last: with it, the checkpoint exists

The step in a name is the number of steps done, so training continues at that step. Layers are
the job's (0 embedding, 1 .. N blocks, N + 1 head): a new plan can load what an old one saved.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

MANIFEST = "manifest.json"
MANIFEST_VERSION = 1
CHUNK_BYTES = 1 << 20
"""Bytes of one LayerChunk: small beside the control plane's message cap, large beside its overhead."""
MAX_FILE_BYTES = 64 << 30
"""No layer's file is larger; an announcement beyond it is refused before a byte is taken."""

_STEP_DIR = re.compile(r"step-(\d{6,})")
_LAYER = re.compile(r"layer-(\d{4,})(\.optimizer|\.(residual|local)-\d{1,6})?\.safetensors")


class ManifestError(ValueError):
    """A manifest that cannot be read: says what was found and what is required."""


@dataclass(frozen=True, slots=True)
class LayerFileInfo:
    """One file of a checkpoint: its name in the directory, its hash and its size."""

    name: str
    sha256: str
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a checkpoint holds. `next_sample`: how many samples of the order were consumed."""

    run: str
    step: int
    files: tuple[LayerFileInfo, ...]
    next_sample: int
    job_json: str
    loss: float | None = None
    eval_loss: float | None = None

    def to_json(self) -> str:
        """The manifest as indented JSON, keys in a fixed order."""
        return json.dumps(
            {
                "version": MANIFEST_VERSION,
                "run": self.run,
                "step": self.step,
                "next_sample": self.next_sample,
                "loss": self.loss,
                "eval_loss": self.eval_loss,
                "files": [{"name": f.name, "sha256": f.sha256, "n_bytes": f.n_bytes} for f in self.files],
                "job": json.loads(self.job_json),
            },
            indent=1,
        )


def parse_manifest(text: str, source: str) -> Manifest:
    """Read a manifest; `source` names it in errors. Raises ManifestError."""
    try:
        raw = json.loads(text)
        if raw["version"] != MANIFEST_VERSION:
            raise ManifestError(
                f"{source}: found manifest version {raw['version']}, required {MANIFEST_VERSION}; "
                "read it with the version of isthmus that wrote it"
            )
        files = tuple(
            LayerFileInfo(safe_file_name(f["name"]), str(f["sha256"]), int(f["n_bytes"]))
            for f in raw["files"]
        )
        return Manifest(
            str(raw["run"]),
            int(raw["step"]),
            files,
            int(raw["next_sample"]),
            json.dumps(raw["job"]),
            raw["loss"],
            raw["eval_loss"],
        )
    except ManifestError:
        raise
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as e:
        raise ManifestError(
            f"{source}: found {type(e).__name__}: {e}; required a checkpoint's manifest"
        ) from e


def step_dir(step: int) -> str:
    """Directory name of the checkpoint after `step` steps."""
    return f"step-{step:06d}"


def step_of_dir(name: str) -> int | None:
    """The step of a checkpoint directory's name, or None if it is not one."""
    m = _STEP_DIR.fullmatch(name)
    return int(m.group(1)) if m else None


def weights_file(layer: int) -> str:
    """File of a layer's weights."""
    return f"layer-{layer:04d}.safetensors"


def optimizer_file(layer: int) -> str:
    """File of a layer's optimizer state."""
    return f"layer-{layer:04d}.optimizer.safetensors"


def residual_file(layer: int, replica: int) -> str:
    """File of what a replica's error feedback of a layer has not sent yet."""
    return f"layer-{layer:04d}.residual-{replica}.safetensors"


def local_file(layer: int, replica: int) -> str:
    """File of a replica's own weights and state of a layer, where replicas step alone."""
    return f"layer-{layer:04d}.local-{replica}.safetensors"


def layer_of_file(name: str) -> int | None:
    """The layer a checkpoint file belongs to, or None if the name is not a layer's."""
    m = _LAYER.fullmatch(name)
    return int(m.group(1)) if m else None


def safe_file_name(name: str) -> str:
    """`name` itself if it is a layer file's name; names come from the wire and must not leave the directory.

    Raises ManifestError.
    """
    if layer_of_file(name) is None:
        raise ManifestError(
            f"found file name {name[:80]!r}, required one like {weights_file(0)!r} or {optimizer_file(0)!r}"
        )
    return name


def missing_layers(names: Iterable[str], n_layers: int) -> tuple[int, ...]:
    """Layers of 0 .. n_layers - 1 whose weights are not among `names`."""
    have = set(names)
    return tuple(i for i in range(n_layers) if weights_file(i) not in have)


def to_remove(
    steps: Iterable[tuple[int, float | None]], keep: int, keep_best: bool
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Which of the checkpoints (step, eval loss) to remove, and why each of the others stays.

    The newest `keep` stay; with `keep_best` also the one of least eval loss (the newest, of equals).
    """
    found = sorted(steps)
    last = {s for s, _ in found[-keep:]}
    rated = [(loss, -s) for s, loss in found if loss is not None]
    best = -min(rated)[1] if keep_best and rated else None
    reasons = tuple(
        f"step {s} stays: " + (f"one of the last {keep}" if s in last else "the best eval loss")
        for s, _ in found
        if s in last or s == best
    )
    return tuple(s for s, _ in found if s not in last and s != best), reasons

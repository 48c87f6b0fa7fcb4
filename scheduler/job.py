"""The job: what to train, on what, within which limits. Strict: an unknown key is an error.

`parse_job` takes text and names file, line and key in every error; reading the file is the
caller's. Knows nothing of devices.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ModelSpec(_Strict):
    """A decoder-only transformer: embedding, `layers` blocks, head; layer indices 0 .. layers + 1."""

    preset: str | None = None
    """A name from `scheduler.presets` (gpt2, smollm2-135m, demo, …); other keys override it."""
    weights: str | None = None
    """A directory with config.json and safetensors in Hugging Face's layout, to start from."""
    family: Literal["gpt2", "llama"] = "gpt2"
    layers: Annotated[int, Field(ge=1)] = 4
    hidden: Annotated[int, Field(ge=1)] = 128
    heads: Annotated[int, Field(ge=1)] = 4
    kv_heads: Annotated[int, Field(ge=1)] | None = None
    """Keys' and values' heads (grouped-query); default: heads."""
    ffn: Annotated[int, Field(ge=1)] | None = None
    """Width of the MLP; default 4 x hidden (gpt2) or 8/3 x hidden rounded up to 64 (llama)."""
    vocab: Annotated[int, Field(ge=2)] | None = None
    """Default: the tokenizer's."""
    max_positions: Annotated[int, Field(ge=1)] | None = None
    tied: bool = True
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0


class DataSpec(_Strict):
    files: tuple[str, ...]
    """Paths or globs, relative to the job file (or the worker's --data-dir): .txt, .jsonl, .parquet."""
    text_key: str = "text"
    tokenizer: str = "bytes"
    """`bytes`, or the path of a `tokenizers` JSON file (or a directory that holds tokenizer.json)."""
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.01
    eval_samples: Annotated[int, Field(ge=0)] = 64


class OptimizerSpec(_Strict):
    name: Literal["adamw", "sgd"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 3e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    clip_norm: Annotated[float, Field(ge=0)] = 1.0
    """Global gradient norm; 0: no clipping."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    decay: Literal["constant", "linear", "cosine"] = "cosine"
    final_lr_fraction: Annotated[float, Field(ge=0, le=1)] = 0.1


class ParallelismSpec(_Strict):
    stages: Annotated[int, Field(ge=1)]
    replicas: Annotated[int, Field(ge=1)] = 1


class ScheduleSpec(_Strict):
    name: Literal["gpipe", "1f1b"] = "1f1b"
    warmup_extra: Annotated[int, Field(ge=0)] = 0


class CompressionSpec(_Strict):
    activations: Literal["identity"] = "identity"
    gradients: Literal["identity"] = "identity"


class CheckpointSpec(_Strict):
    every: Annotated[int, Field(ge=0)] = 50
    """Steps between checkpoints; 0: only at the end."""
    keep: Annotated[int, Field(ge=1)] = 2
    keep_best: bool = True


class JobSpec(_Strict):
    name: str
    model: ModelSpec
    data: DataSpec
    sequence_length: Annotated[int, Field(ge=2)]
    global_batch: Annotated[int, Field(ge=1)]
    """Samples a step, over all replicas."""
    micro_batch: Annotated[int, Field(ge=1)]
    steps: Annotated[int, Field(ge=1)]
    eval_every: Annotated[int, Field(ge=0)] = 0
    optimizer: OptimizerSpec = OptimizerSpec()
    precision: Literal["fp32", "bf16"] = "fp32"
    parallelism: Literal["auto"] | ParallelismSpec = "auto"
    schedule: ScheduleSpec = ScheduleSpec()
    compression: CompressionSpec = CompressionSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    seed: int = 0
    prompt: str = ""
    """Text to continue when the run ends; '': no sample."""

    @property
    def micro_batches(self) -> int:
        """Micro-batches of one step, over all replicas."""
        return self.global_batch // self.micro_batch

    @property
    def n_layers(self) -> int:
        """Layers as the partition counts them: embedding, blocks, head."""
        return self.model.layers + 2

"""The job: what to train, on what, within which limits. Strict: an unknown key is an error.

`parse_job` takes text and names file, line and key in every error; reading the file is the
caller's. Knows nothing of devices.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, Field, ValidationError

from scheduler.combinations import BYTE_VOCAB, impossible, why_undivided
from scheduler.job_compression import CompressionSpec
from scheduler.marked_yaml import Marked, MarkedYamlError, Path, Problem, dotted, load_marked
from scheduler.names import nearest
from scheduler.pattern import REQUIRED, Block, parse_layers, quoted
from scheduler.presets import PRESETS, resolve_model
from scheduler.sequence import Split
from scheduler.strict import Strict as _Strict

__all__ = [
    "BYTE_VOCAB",
    "PRESETS",
    "CheckpointSpec",
    "CompressionSpec",
    "DataSpec",
    "JobError",
    "JobSpec",
    "LocalStepsSpec",
    "ModelSpec",
    "OptimizerSpec",
    "ParallelismSpec",
    "Problem",
    "ScheduleSpec",
    "job_from_json",
    "job_to_json",
    "parse_job",
    "resolve_model",
]


class JobError(ValueError):
    """A job that cannot be: `source`, and what is wrong with it, in the order of its lines.

    Reads as `jobs/demo.yaml:12: model.hiden: found an unknown key; required …`, a line a problem.
    """

    def __init__(self, source: str, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(f"{source}:{p.line}: {p}" for p in problems))
        self.source = source
        self.problems = problems


Auto = Literal["auto"]
"""Left to the planner."""
_Fraction = Annotated[float, Field(ge=0, lt=1)]


class ModelSpec(_Strict):
    """A decoder-only model: embedding, `depth` blocks, head; layer indices 0 .. depth + 1."""

    preset: str | None = None
    """A name from `scheduler.presets` (gpt2, smollm2-135m, demo, …); other keys override it."""
    weights: str | None = None
    """A directory with config.json and safetensors in Hugging Face's layout, to start from."""
    family: Literal["gpt2", "llama"] = "gpt2"
    layers: Annotated[int, Field(ge=1)] | tuple[str | tuple[str, ...], ...] = 4
    """How many blocks of attention and MLP, or the blocks: `[[h3, mlp], 11 x [attention, mlp]]`
    (`scheduler/pattern.py`; the parts and their options: `scheduler/mixers`)."""
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
    norm_eps: Annotated[float, Field(gt=0)] = 1e-5
    rope_theta: Annotated[float, Field(gt=0)] = 10000.0

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Each block's parts. Raises PatternError for `layers` that mean none."""
        return parse_layers(self.layers)

    @property
    def depth(self) -> int:
        """Blocks between embedding and head."""
        return len(self.blocks)

    @property
    def parts(self) -> int:
        """How often the blocks add to the residual stream."""
        return sum(map(len, self.blocks))


class DataSpec(_Strict):
    files: Annotated[tuple[str, ...], Field(min_length=1)]
    """Paths or globs, relative to the job file (or the worker's --data-dir): .txt, .jsonl, .parquet."""
    text_key: str = "text"
    tokenizer: str = "bytes"
    """`bytes`, or the path of a `tokenizers` JSON file (or a directory that holds tokenizer.json)."""
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.01
    eval_samples: Annotated[int, Field(ge=0)] = 64
    documents: Literal["joined", "apart"] = "joined"
    """A sample is so many tokens of the text, whose documents follow one another with a token between them.
    `joined`: a position sees what stands before it in the sample. `apart`: what stands before it in its
    document; positions and states begin anew with each (`attention`, `ssd` and `delta` can)."""
    samples: Annotated[int, Field(ge=0)] = 0
    """Training samples of an epoch, for plans made before a worker has counted them; 0: not known."""


class OptimizerSpec(_Strict):
    name: Literal["adamw", "sgd"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 3e-4
    betas: tuple[_Fraction, _Fraction] = (0.9, 0.95)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    clip_norm: Annotated[float, Field(ge=0)] = 1.0
    """Global gradient norm; 0: no clipping."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    decay: Literal["constant", "linear", "cosine"] = "cosine"
    final_lr_fraction: Annotated[float, Field(ge=0, le=1)] = 0.1


class ParallelismSpec(_Strict):
    stages: Annotated[int, Field(ge=1)] | None = None
    """Left out: the planner chooses stages and replicas, as `parallelism: auto` has it."""
    replicas: Annotated[int, Field(ge=1)] = 1
    split: Literal["auto", "batch", "sequence"] = "batch"
    """What the replicas of a stage share. `sequence`: each holds a part of the positions of every sample, for
    contexts too long for one device; attention's keys and values pass from each replica to the next. `auto`:
    the planner plans both and takes the shorter step. `parallelism: auto` has them share the batch, and
    sequences only where no plan fits in memory otherwise."""


class ScheduleSpec(_Strict):
    name: Literal["gpipe", "1f1b", "auto"] = "1f1b"
    warmup_extra: Auto | Annotated[int, Field(ge=0)] = 0
    """Micro-batches in flight beyond what 1f1b needs, for every stage that follows and, where replicas share
    sequences, every shard behind; they hide transfers and cost memory."""


class LocalStepsSpec(_Strict):
    """Replicas step alone and exchange their weights' change, not gradients: a piece of it every step.

    DiLoCo (Douillard et al., 2023) with the parameters in `every` pieces that take turns (Streaming DiLoCo,
    2025). In step s piece s mod `every` sets out as it stands at the step's beginning and travels beside the
    step's forwards and backwards; the outer step by Nesterov momentum is applied at the step's end, one step
    late. `compression.reduce` says in how many bits the change goes.
    """

    every: Annotated[int, Field(ge=2)]
    """Steps between two exchanges of the same weight."""
    lr: Annotated[float, Field(gt=0)] = 0.7
    """Of the outer step. DiLoCo's 0.7 and 0.9 are for hundreds of exchanges: a change then counts lr / (1 -
    momentum) times. In runs of a few dozen, 1.0 and 0.0 are better, the plain average of the replicas."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9


class CheckpointSpec(_Strict):
    every: Annotated[int, Field(ge=0)] = 50
    """Steps between checkpoints; 0: only at the end."""
    neighbours_every: Annotated[int, Field(ge=0)] = 0
    """Steps between the copies of each stage that a worker of another stage keeps in memory, so that a stage
    lost with all its replicas goes back by no more; 0: there are none."""
    keep: Annotated[int, Field(ge=1)] = 2
    keep_best: bool = True


class ChecksSpec(_Strict):
    every: Annotated[int, Field(ge=0)] = 0
    """Steps between two spot checks: one micro-batch of one stage is computed again by other replicas of the
    stage, and what its neighbours saw of it is compared; 0: nothing is."""
    tolerance: Annotated[float, Field(gt=0.0)] = 1e-2
    """How far apart the two may be, as a share of their norm. Devices of one kind agree to the last bits,
    those of several to about 1e-5 in fp32 and 1e-2 in bf16."""


class JobSpec(_Strict):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    """Names the run's files, hence letters, digits, `.`, `_` and `-` only."""
    model: ModelSpec
    data: DataSpec
    sequence_length: Annotated[int, Field(ge=2)]
    """Tokens of a sample."""
    global_batch: Annotated[int, Field(ge=1)]
    """Samples a step, over all replicas."""
    micro_batch: Auto | Annotated[int, Field(ge=1)]
    """Samples in a micro-batch. `auto`: workers are profiled with `profiled_micro_batch`, and with half of
    it to learn what does not grow with the samples."""
    steps: Annotated[int, Field(ge=1)]
    """Of the optimizer, over the whole run."""
    eval_every: Annotated[int, Field(ge=0)] = 0
    """Steps between evaluations of the held-out text; 0: only at the end."""
    optimizer: OptimizerSpec = OptimizerSpec()
    precision: Literal["fp32", "bf16"] = "fp32"
    parallelism: Literal["auto"] | ParallelismSpec = "auto"
    schedule: ScheduleSpec = ScheduleSpec()
    recompute: Auto | bool = "auto"
    """Save only the inputs of stages and do each forward again in backward; `auto`: where memory wants it."""
    streams: Auto | Annotated[int, Field(ge=1, le=64)] = "auto"
    """Streams of a link that frames are striped over; at most what `worker join --streams` allows."""
    compression: CompressionSpec = CompressionSpec()
    local_steps: LocalStepsSpec | None = None
    """Off unless it is here."""
    checkpoint: CheckpointSpec = CheckpointSpec()
    checks: ChecksSpec = ChecksSpec()
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    prompt: str = ""
    """Text to continue when the run ends; '': no sample."""

    @property
    def profiled_micro_batch(self) -> int:
        """Samples in the micro-batches that layers are profiled with: the job's, or, where the job leaves
        that open, the largest divisor of the global batch up to 4."""
        if self.micro_batch == "auto":
            return max(n for n in range(1, 5) if self.global_batch % n == 0)
        return self.micro_batch

    @property
    def micro_batches(self) -> int:
        """Micro-batches of one step, over all replicas, at the profiled size."""
        return self.global_batch // self.profiled_micro_batch

    @property
    def asked_shape(self) -> tuple[int, int] | None:
        """(stages, replicas) that the job asks for; None: the planner chooses."""
        if self.parallelism == "auto" or self.parallelism.stages is None:
            return None
        return self.parallelism.stages, self.parallelism.replicas

    @property
    def splits(self) -> tuple[Split, ...]:
        """What the replicas of a stage may share: where the job leaves it open both, if its model can be
        divided."""
        asked = "batch" if self.parallelism == "auto" else self.parallelism.split
        if asked != "auto":
            return (asked,)
        return ("batch",) if why_undivided(self) else ("batch", "sequence")

    @property
    def split(self) -> Split:
        """What the replicas of a stage share; the batch, where that is left open."""
        return self.splits[0]

    def sharing(self, split: Split) -> JobSpec:
        """The job whose replicas share just that."""
        if self.splits == (split,):
            return self
        given = ParallelismSpec() if self.parallelism == "auto" else self.parallelism
        return self.model_copy(update={"parallelism": given.model_copy(update={"split": split})})

    @property
    def most_replicas(self) -> int:
        """As many as there are micro-batches, of one sample where the job leaves their size open; where they
        share sequences, as there are positions."""
        if self.split == "sequence":
            return self.sequence_length
        return self.global_batch if self.micro_batch == "auto" else self.micro_batches

    @property
    def shape(self) -> ModelSpec:
        """The model with its preset merged in and its defaults filled (`resolve_model`).

        gpt2 learns a vector for each position: where none are named, as many as a sample has.
        """
        model = resolve_model(self.model)
        if model.family == "gpt2" and model.max_positions is None:
            return model.model_copy(update={"max_positions": self.sequence_length})
        return model

    @property
    def n_layers(self) -> int:
        """Layers as the partition counts them: embedding, blocks, head."""
        return self.shape.depth + 2


def parse_job(text: str, source: str) -> JobSpec:
    """The job that `text` (YAML) describes; `source` names it in errors. Its model is resolved.

    Raises JobError for broken YAML, unknown or doubled keys, wrong types and combinations that cannot be.
    """
    try:
        marked = load_marked(quoted(text))
    except MarkedYamlError as e:
        raise JobError(source, (e.problem,)) from None
    job = _job(marked, source)
    return job.model_copy(update={"model": job.shape})


def job_to_json(job: JobSpec) -> str:
    """The job for the wire; only what was set. `job_from_json` inverts it."""
    return job.model_dump_json(exclude_unset=True)


def job_from_json(text: str, source: str = "the coordinator's job") -> JobSpec:
    """The job that `job_to_json` wrote. Raises JobError as `parse_job` does."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise JobError(source, (Problem(1, "", f"text that is not JSON ({e})", "a job as JSON"),)) from None
    return _job(Marked(value, {}), source)


def _job(marked: Marked, source: str) -> JobSpec:
    if not isinstance(marked.value, dict):
        found = "nothing" if marked.value is None else _shown(marked.value)
        raise JobError(source, (Problem(1, "", found, "a job: keys such as name, model, data, steps"),))
    try:
        # Through JSON, because strict mode takes a list for a tuple only there.
        job = JobSpec.model_validate_json(json.dumps(marked.value))
    except ValidationError as e:
        raise JobError(source, _by_line(_problem(marked, error) for error in _relevant(marked, e))) from None
    problems = _by_line(
        Problem(marked.line(path), dotted(path), found, required) for path, found, required in impossible(job)
    )
    if problems:
        raise JobError(source, problems)
    return job


def _by_line(problems: Iterator[Problem]) -> tuple[Problem, ...]:
    return tuple(sorted(problems, key=lambda p: p.line))


_EITHER: dict[Path, str] = {
    ("micro_batch",): "'auto', or a number of samples, 1 or more",
    ("recompute",): "'auto', true or false",
    ("streams",): "'auto', or a number of streams, 1 to 64",
    ("schedule", "warmup_extra"): "'auto', or a number of micro-batches, 0 or more",
    ("model", "layers"): REQUIRED,
}
"""Keys that take one of two kinds of value, `auto` beside a scalar for most, and what they require."""


def _relevant(marked: Marked, error: ValidationError) -> Iterator[tuple[Path, Any]]:
    """Pydantic's errors with their paths in the text, a union's branches made one: of `parallelism` the one
    that is meant, of the others the first."""
    given = marked.value.get("parallelism")
    told: set[Path] = set()
    for e in error.errors(include_url=False):
        loc = e["loc"]
        key = next((k for k in _EITHER if loc[: len(k)] == k and len(loc) > len(k)), None)
        if key is not None:
            if key in told:
                continue
            told.add(key)
            loc = key
        elif loc[0] == "parallelism" and len(loc) > 1:
            if (loc[1] == "ParallelismSpec") != isinstance(given, dict):
                continue
            loc = (loc[0], *loc[2:])  # the branch's name is no key of the text
        yield loc, e


def _problem(marked: Marked, located: tuple[Path, Any]) -> Problem:
    path, error = located
    line, key = marked.line(path), dotted(path)
    if error["type"] == "extra_forbidden":
        known = _keys_at(path[:-1])
        near = nearest(str(path[-1]), known)
        return Problem(line, key, f"an unknown key{near}", f"one of: {', '.join(known)}")
    if error["type"] == "missing":
        return Problem(line, key, "no such key", "a value for it")
    required = str(error["msg"]).removeprefix("Input should be ").removeprefix("Value should be ")
    if key == "parallelism":
        required = "'auto', or a mapping with stages, replicas and split"
    required = _EITHER.get(path, required)
    return Problem(line, key, _shown(error["input"]), required)


def _keys_at(path: Path) -> list[str]:
    """The keys that the mapping at `path` may have."""
    model: type[BaseModel] = JobSpec
    for part in path:
        if isinstance(part, str):  # a number is a place in a list, whose items are of the list's type
            model = next(_models_in(model.model_fields[part].annotation))
    return list(model.model_fields)


def _models_in(annotation: object) -> Iterator[type[BaseModel]]:
    """The models that a type is made of: of `Model | None`, of `tuple[Model, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)


def _shown(value: object) -> str:
    """A value for an error: short, and with its kind where the kind is what is wrong."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."

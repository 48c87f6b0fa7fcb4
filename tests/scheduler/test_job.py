"""Job files: what is accepted, and that each mistake is named by file, line, key, found and required."""

from __future__ import annotations

from pathlib import Path

import pytest

from scheduler.job import JobError, JobSpec, job_from_json, job_to_json, parse_job

JOBS = Path(__file__).parents[2] / "jobs"
GOOD = """\
name: small
model:
  family: llama
  layers: 2
  hidden: 32
  heads: 4
data:
  files: [a.txt, "b/*.jsonl"]
sequence_length: 32
global_batch: 8
micro_batch: 2
steps: 6
eval_every: 3
optimizer:
  lr: 3e-4
  betas: [0.9, 0.99]
  clip_norm: 1
parallelism:
  stages: 2
  replicas: 2
prompt: "ROMEO:"
"""


def problems(text: str) -> list[tuple[int, str, str, str]]:
    with pytest.raises(JobError) as e:
        parse_job(text, "jobs/x.yaml")
    assert all(line.startswith("jobs/x.yaml:") for line in str(e.value).splitlines())
    return [(p.line, p.key, p.found, p.required) for p in e.value.problems]


def one(text: str) -> tuple[int, str, str, str]:
    found = problems(text)
    assert len(found) == 1, found
    return found[0]


def swapped(old: str, new: str) -> str:
    assert GOOD.count(old) == 1
    return GOOD.replace(old, new)


def test_a_good_job_is_read_with_numbers_as_numbers() -> None:
    job = parse_job(GOOD, "x")
    assert job.optimizer.lr == 3e-4
    assert job.optimizer.betas == (0.9, 0.99)
    assert isinstance(job.optimizer.clip_norm, float)
    assert job.data.files == ("a.txt", "b/*.jsonl")
    assert job.parallelism != "auto"
    assert (job.parallelism.stages, job.parallelism.replicas) == (2, 2)
    assert (job.n_layers, job.micro_batches) == (4, 4)
    assert job.model.ffn == 128  # 8/3 x 32 = 85.3, up to a multiple of 64


@pytest.mark.parametrize("number", ["3e-4", "3.0e-4", "0.0003", "3.E-4", "+3e-4", ".0003", "3E-04"])
def test_floats_in_every_spelling(number: str) -> None:
    assert parse_job(swapped("lr: 3e-4", f"lr: {number}"), "x").optimizer.lr == pytest.approx(3e-4)


def test_the_wire_gives_back_the_same_job() -> None:
    for job in (
        parse_job(GOOD, "x"),
        parse_job(swapped("family: llama\n  layers: 2\n  hidden: 32\n  heads: 4", "preset: gpt2-xl"), "x"),
        JobSpec.model_validate_json(
            '{"name":"d","model":{"preset":"demo"},"data":{"files":["a"]},'
            '"sequence_length":8,"global_batch":1,"micro_batch":1,"steps":1}'
        ),
    ):
        again = job_from_json(job_to_json(job))
        assert again == job
        assert again.shape == job.shape
        assert job_to_json(again) == job_to_json(job)


def test_the_wire_refuses_what_is_not_a_job() -> None:
    with pytest.raises(JobError, match="not JSON"):
        job_from_json("{")
    with pytest.raises(JobError, match="found a list"):
        job_from_json("[]")
    with pytest.raises(JobError, match=r"model: found no such key"):
        job_from_json('{"name": "x"}')


def test_learned_positions_are_as_many_as_a_sample_has_unless_named() -> None:
    learned = swapped("family: llama", "family: gpt2")
    assert parse_job(learned, "x").model.max_positions == 32
    assert (
        parse_job(learned.replace("heads: 4", "heads: 4\n  max_positions: 64"), "x").model.max_positions == 64
    )
    assert parse_job(GOOD, "x").model.max_positions is None


@pytest.mark.parametrize("path", sorted(JOBS.glob("*.yaml")), ids=lambda p: p.stem)
def test_the_shipped_jobs_are_jobs(path: Path) -> None:
    job = parse_job(path.read_text(encoding="utf-8"), path.name)
    assert job.name == path.stem
    assert job.n_layers >= 4  # each has work for four stages
    assert job.eval_every > 0


def test_the_known_jobs_are_shipped() -> None:
    assert {"demo", "tiny", "finetune-smollm2"} <= {p.stem for p in JOBS.glob("*.yaml")}


def test_an_unknown_key_names_the_nearest() -> None:
    line, key, found, required = one(swapped("  hidden: 32", "  hiden: 32"))
    assert (line, key) == (5, "model.hiden")
    assert found == "an unknown key (did you mean 'hidden'?)"
    assert "hidden" in required
    line, key, found, required = one(swapped("  replicas: 2", "  replica: 2"))
    assert (line, key, required) == (20, "parallelism.replica", "one of: stages, replicas, split")
    assert "'replicas'" in found


@pytest.mark.parametrize(
    ("old", "new", "line", "key", "found", "required"),
    [
        ("steps: 6", "steps: six", 12, "steps", '"six"', "a valid integer"),
        ("steps: 6", "steps: 6.0", 12, "steps", "6.0", "a valid integer"),
        ("steps: 6", "steps: true", 12, "steps", "true", "a valid integer"),
        ("steps: 6", "steps: 0", 12, "steps", "0", "greater than or equal to 1"),
        ("steps: 6", "steps:", 12, "steps", "null", "a valid integer"),
        ("lr: 3e-4", "lr: .nan", 15, "optimizer.lr", "NaN", "a finite number"),
        ("lr: 3e-4", "lr: -.inf", 15, "optimizer.lr", "-Infinity", "a finite number"),
        ("[0.9, 0.99]", "[0.9, 1.5]", 16, "optimizer.betas[1]", "1.5", "less than 1"),
        ('[a.txt, "b/*.jsonl"]', "a.txt", 8, "data.files", '"a.txt"', "a valid array"),
        ('[a.txt, "b/*.jsonl"]', "[]", 8, "data.files", "a list", "at least 1 item"),
        ('[a.txt, "b/*.jsonl"]', "[a.txt, 7]", 8, "data.files[1]", "7", "a valid string"),
        ("family: llama", "family: bert", 3, "model.family", '"bert"', "'gpt2' or 'llama'"),
        ("name: small", "name: ../up", 1, "name", '"../up"', "pattern"),
        (
            "micro_batch: 2",
            "micro_batch: some",
            11,
            "micro_batch",
            '"some"',
            "'auto', or a number of samples",
        ),
        ("micro_batch: 2", "micro_batch: 0", 11, "micro_batch", "0", "'auto', or a number of samples"),
        ("steps: 6", "steps: 6\nrecompute: maybe", 13, "recompute", '"maybe"', "'auto', true or false"),
        ("steps: 6", "steps: 6\nstreams: 65", 13, "streams", "65", "1 to 64"),
        ("steps: 6", "steps: 6\nstreams: [1]", 13, "streams", "a list", "1 to 64"),
        (
            "steps: 6",
            "steps: 6\nschedule:\n  warmup_extra: -1",
            14,
            "schedule.warmup_extra",
            "-1",
            "'auto', or a number of micro-batches, 0 or more",
        ),
        ("steps: 6", "steps: 6\nschedule:\n  name: zb", 14, "schedule.name", '"zb"', "'1f1b' or 'auto'"),
        ("parallelism:\n  stages: 2\n  replicas: 2", "parallelism: no", 18, "parallelism", '"no"', "'auto'"),
    ],
)
def test_a_wrong_value_is_named(old: str, new: str, line: int, key: str, found: str, required: str) -> None:
    got = one(swapped(old, new))
    assert got[:3] == (line, key, found)
    assert required in got[3]


def test_knobs_may_be_left_to_the_planner() -> None:
    left = "micro_batch: auto\nrecompute: auto\nstreams: auto\nschedule: {name: auto, warmup_extra: auto}"
    job = parse_job(swapped("micro_batch: 2", left), "x")
    assert (job.micro_batch, job.recompute, job.streams) == ("auto", "auto", "auto")
    assert (job.schedule.name, job.schedule.warmup_extra) == ("auto", "auto")
    assert (job.profiled_micro_batch, job.micro_batches) == (4, 2)
    assert job_from_json(job_to_json(job)) == job
    odd = swapped("global_batch: 8", "global_batch: 7").replace("micro_batch: 2", "micro_batch: auto")
    assert parse_job(odd, "x").profiled_micro_batch == 1
    named = parse_job(swapped("micro_batch: 2", "micro_batch: 2\nrecompute: true\nstreams: 3"), "x")
    assert (named.recompute, named.streams, named.profiled_micro_batch) == (True, 3, 2)
    lone = swapped("replicas: 2", "replicas: 9").replace("micro_batch: 2", "micro_batch: auto")
    assert one(lone)[1:3] == ("parallelism.replicas", "9 replicas for 8 micro-batches a step")


def test_a_missing_key_points_at_its_mapping() -> None:
    assert one(swapped('  files: [a.txt, "b/*.jsonl"]', "  text_key: t"))[:3] == (
        7,
        "data.files",
        "no such key",
    )
    assert one(swapped("steps: 6\n", ""))[:3] == (1, "steps", "no such key")


def test_all_mistakes_are_told_at_once_in_the_order_of_lines() -> None:
    text = swapped("hidden: 32", "hidden: wide").replace("steps: 6", "steps: -1\nlr: 1")
    assert [(p[0], p[1]) for p in problems(text)] == [(5, "model.hidden"), (12, "steps"), (13, "lr")]


@pytest.mark.parametrize(
    ("text", "line", "found"),
    [
        ("", 1, "nothing"),
        ("# only a remark\n", 1, "nothing"),
        ("- a\n", 1, "a list"),
        ("name: [1\nsteps: 2\n", 2, "expected ',' or ']'"),
        ("name: a\n\tsteps: 2\n", 2, "'\\t'"),
        ("name: a\nsteps: 1\nname: b\n", 3, "the key again (first on line 1)"),
        ("data:\n  files: [a]\n  files: [b]\n", 3, "the key again (first on line 2)"),
        ("name: &n a\nprompt: *n\n", 2, "the alias *n"),
        ("name: !!python/name:os.system x\n", 1, "the tag"),
        ("name: a\n1: 2\n", 2, "the key '1'"),
        ("? [a]\n: 2\n", 1, "the key a sequence"),
        ("name: \x07\n", 1, "U+0007"),
        ("name: " + "[" * 5000, 1, "nested too deeply"),
        ("steps: " + "9" * 5000, 1, "5000 characters"),
        ("name: a\n---\nname: b\n", 2, "but found another document"),
        ("#" * (2 << 20), 1, "2097152 characters"),
    ],
)
def test_text_that_is_no_job_is_one_error_with_its_line(text: str, line: int, found: str) -> None:
    got = one(text)
    assert got[0] == line
    assert found in got[2]


@pytest.mark.parametrize(
    ("old", "new", "line", "key", "found"),
    [
        ("global_batch: 8", "global_batch: 9", 10, "global_batch", "9, which micro_batch 2 does not divide"),
        ("replicas: 2", "replicas: 5", 20, "parallelism.replicas", "5 replicas for 4 micro-batches"),
        ("stages: 2", "stages: 5", 19, "parallelism.stages", "5 stages for 4 layers"),
        ("heads: 4", "heads: 5", 6, "model.heads", "5 heads for hidden 32"),
        ("heads: 4", "heads: 32", 6, "model.heads", "heads of width 1"),
        ("heads: 4", "heads: 4\n  kv_heads: 3", 7, "model.kv_heads", "3 key-value heads for 4 heads"),
        ("heads: 4", "heads: 4\n  max_positions: 31", 10, "sequence_length", "32, more than the model's 31"),
        ("heads: 4", "heads: 4\n  vocab: 256", 7, "model.vocab", "256 for the byte tokenizer"),
        ("family: llama", "kv_heads: 2", 3, "model.kv_heads", "2 key-value heads in family gpt2"),
        ("family: llama", "preset: lama-7b", 3, "model.preset", "(did you mean 'llama-7b'?)"),
        ("files: [", "held_out: 0\n  files: [", 8, "data.held_out", "0 although eval_every is 3"),
        ("files: [", "eval_samples: 0\n  files: [", 8, "data.eval_samples", "0 although eval_every is 3"),
    ],
)
def test_an_impossible_combination_is_named(old: str, new: str, line: int, key: str, found: str) -> None:
    got = one(swapped(old, new))
    assert got[:2] == (line, key)
    assert found in got[2]
    assert got[3]


def test_combinations_are_checked_on_the_merged_model() -> None:
    text = swapped("family: llama\n  layers: 2\n  hidden: 32\n  heads: 4", "preset: gpt2\n  layers: 1")
    job = parse_job(text, "x")
    assert (job.n_layers, job.model.hidden, job.model.preset) == (3, 768, "gpt2")
    assert one(text.replace("stages: 2", "stages: 4"))[1] == "parallelism.stages"
    assert one(text.replace("sequence_length: 32", "sequence_length: 2048"))[1] == "sequence_length"

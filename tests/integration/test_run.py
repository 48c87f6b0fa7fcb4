"""Whole runs of real processes: trained, killed, resumed, exported. What was lost is nothing.

A run is told from another by its losses alone: same seed, same samples, same losses.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from coordinator.history import read_history
from deploy.local import LocalCluster, LocalOptions
from deploy.processes import Event, ProcessFailed, command
from scheduler.exit_codes import ExitCode
from tests.docs.examples import load_example

TEXT = Path(__file__).parent.parent / "data" / "text.txt"
STEPS = 120
JOB = f"""
name: endure
model: {{family: gpt2, layers: 2, hidden: 32, heads: 4}}
data: {{files: ["{TEXT}"], held_out: 0.05, eval_samples: 8}}
sequence_length: 32
global_batch: 8
micro_batch: 2
steps: {STEPS}
eval_every: 60
optimizer: {{lr: 1e-2, warmup_steps: 2, eps: 1e-4}}
checkpoint: {{every: 30, keep: 2}}
parallelism: PARALLELISM
"""
RELATIVE = 1e-5
"""Losses of unequal plans differ by the order of float32 sums alone. AdamW divides by the size of a gradient,
so `eps` of the job is far above rounding: a gradient that is zero but for rounding must not become a step."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def write_job(directory: Path, parallelism: str) -> Path:
    job = directory / f"{''.join(c for c in parallelism if c.isalnum())}.yaml"
    job.write_text(JOB.replace("PARALLELISM", parallelism))
    return job


def run(
    job: Path,
    state: Path,
    workers: int,
    *,
    resume: bool = False,
    on: Callable[[LocalCluster, Event], None] | None = None,
) -> tuple[int, list[Event]]:
    """Run to whatever end; `on` sees every event as it comes."""
    seen = []
    with LocalCluster(job, LocalOptions(workers=workers, state_dir=state, resume=resume)) as cluster:
        for event in cluster.events():
            seen.append(event)
            if on is not None:
                on(cluster, event)
        code = cluster.wait()
    return code, seen


@pytest.fixture(scope="module")
def undisturbed(directory: Path) -> tuple[float, ...]:
    """Losses of the run that nothing happened to: two stages on two workers."""
    example = load_example("local_cluster")  # as the documentation shows it
    job = write_job(directory, "{stages: 2, replicas: 1}")
    history = example.train(job, workers=2, links=None, state_dir=directory / "undisturbed")
    assert len(history.losses) == STEPS
    assert history.losses[-1] < history.losses[0] - 1.0, "it learns"
    losses: tuple[float, ...] = history.losses
    return losses


def test_a_killed_worker_ends_the_run_with_its_name_and_another_plan_continues_it(
    directory: Path, undisturbed: tuple[float, ...]
) -> None:
    state = directory / "killed-worker"

    def kill(cluster: LocalCluster, event: Event) -> None:
        if event["event"] == "checkpoint" and event["step"] == 30:
            cluster.workers["w1"].kill()

    code, events = run(write_job(directory, "{stages: 2, replicas: 1}"), state, 2, on=kill)
    assert code == ExitCode.WORKER_LOST
    failed = next(e for e in events if e["event"] == "failed")
    assert "w1" in failed["reason"]
    # The same run goes on with one stage on one worker.
    code, _ = run(write_job(directory, "{stages: 1, replicas: 1}"), state, 1, resume=True)
    assert code == ExitCode.OK
    assert read_history(state).losses == pytest.approx(undisturbed, rel=RELATIVE)


def test_knobs_named_by_the_job_are_run_and_change_no_loss(
    directory: Path, undisturbed: tuple[float, ...]
) -> None:
    job = write_job(
        directory, "{stages: 2, replicas: 1}\nrecompute: true\nstreams: 1\nschedule: {name: gpipe}"
    )
    job.write_text(job.read_text().replace("micro_batch: 2", "micro_batch: 4"))
    code, _ = run(job, directory / "knobs", 2)
    assert code == ExitCode.OK
    history = read_history(directory / "knobs")
    assert history.plan is not None
    assert (history.plan.schedule, history.plan.micro_batch, history.plan.micro_batches) == ("gpipe", 4, (2,))
    assert (history.plan.recompute, history.plan.streams) == (True, 1)
    assert history.losses == pytest.approx(undisturbed, rel=RELATIVE)


def test_a_killed_coordinator_is_started_again_and_loses_no_step(
    directory: Path, undisturbed: tuple[float, ...]
) -> None:
    state = directory / "killed-coordinator"

    def kill(cluster: LocalCluster, event: Event) -> None:
        if event["event"] == "step" and event["step"] == 45:
            cluster.coordinator.kill()

    run(write_job(directory, "{stages: 2, replicas: 1}"), state, 2, on=kill)
    code, _ = run(write_job(directory, "{stages: 1, replicas: 2}"), state, 2, resume=True)
    assert code == ExitCode.OK
    history = read_history(state)
    assert history.attempts == 2
    assert history.losses == pytest.approx(undisturbed, rel=RELATIVE)


def test_a_drained_run_saves_and_can_be_continued(directory: Path, undisturbed: tuple[float, ...]) -> None:
    state = directory / "drained"

    def drain(cluster: LocalCluster, event: Event) -> None:
        if event["event"] == "step" and event["step"] == 40:
            cluster.drain()

    job = write_job(directory, "{stages: 2, replicas: 1}")
    run(job, state, 2, on=drain)
    done = len(read_history(state).losses)
    assert 40 <= done < STEPS
    code, events = run(job, state, 2, resume=True)
    assert code == ExitCode.OK
    assert min(e["step"] for e in events if e["event"] == "step") == done + 1, "nothing was done twice"
    assert read_history(state).losses == pytest.approx(undisturbed, rel=RELATIVE)


def test_the_trained_model_loads_in_transformers_and_continues_a_text(
    directory: Path, undisturbed: tuple[float, ...]
) -> None:
    del undisturbed
    transformers = pytest.importorskip("transformers")
    checkpoint = directory / "undisturbed" / "checkpoints" / f"step-{STEPS:06d}"
    target = directory / "exported"
    subprocess.run(command("worker", "export", str(checkpoint), str(target)), check=True, capture_output=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(target)
    assert sum(p.numel() for p in model.parameters()) > 10_000
    written = subprocess.run(
        command("worker", "generate", str(checkpoint), "--prompt", "To be", "--max-new-tokens", "20"),
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert written.startswith("To be")
    assert len(written) > len("To be\n")


def test_a_job_with_a_tokenizer_of_its_own_ends_with_text_report_and_model(tmp_path: Path) -> None:
    """Paths of the job mean the same to the workers and to the model that speaks afterwards."""
    tokenizers = pytest.importorskip("tokenizers")
    for folder in ("jobs", "text", "words"):
        (tmp_path / folder).mkdir()
    (tmp_path / "text" / "a.txt").write_text("to be or not to be " * 200)
    vocab = {word: i for i, word in enumerate(("[UNK]", "to", "be", "or", "not"))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "words" / "tokenizer.json"))
    job = tmp_path / "jobs" / "words.yaml"
    job.write_text(
        """
name: words
model: {family: llama, layers: 1, hidden: 16, heads: 2, max_positions: 64}
data: {files: ["../text/*.txt"], tokenizer: ../words, held_out: 0.05, eval_samples: 2}
sequence_length: 8
global_batch: 2
micro_batch: 1
steps: 3
prompt: to be
"""
    )
    state, report, model = tmp_path / "state", tmp_path / "report", tmp_path / "model"
    done = subprocess.run(
        command(
            "deploy", "local", str(job), "--workers", "1", "--state-dir", str(state), "--json",
            "--report", str(report), "--export", str(model),
        ),
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == ExitCode.OK, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    said = next(e["text"] for e in events if e["event"] == "generated")
    assert said.startswith("to be")
    assert set(said.split()) <= set(vocab)
    assert said.split()[-1] in (report / "index.html").read_text(encoding="utf-8")
    assert (model / "tokenizer.json").exists()


def test_a_checkpoint_with_one_byte_changed_is_refused(
    directory: Path, undisturbed: tuple[float, ...]
) -> None:
    del undisturbed
    checkpoint = directory / "undisturbed" / "checkpoints" / f"step-{STEPS:06d}"
    file = checkpoint / "layer-0001.safetensors"
    before = file.read_bytes()
    file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    try:
        done = subprocess.run(
            command("worker", "generate", str(checkpoint)), capture_output=True, text=True, check=False
        )
    finally:
        file.write_bytes(before)
    assert done.returncode == ExitCode.CHECKPOINT_CORRUPT
    assert "layer-0001.safetensors" in done.stderr


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("steps: 120", ExitCode.JOB_INVALID, "stepps"),
        (str(TEXT), ExitCode.DATA, "nowhere.txt"),
    ],
    ids=["unknown key", "missing data"],
)
def test_a_job_that_cannot_be_ends_with_its_own_code(
    directory: Path, text: str, code: ExitCode, words: str
) -> None:
    good = JOB.replace("PARALLELISM", "auto")
    job = directory / f"bad-{code}.yaml"
    job.write_text(good.replace(text, {"steps: 120": "stepps: 120"}.get(text, "/nowhere.txt")))
    try:
        found, events = run(job, directory / f"bad-{code}", 1)
        said = str(next(e for e in events if e["event"] in ("failed", "error"))["reason"])
    except ProcessFailed as failure:  # refused before it listens
        found, said = failure.code, str(failure)
    assert found == code
    assert words in said

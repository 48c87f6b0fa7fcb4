"""Workers are killed in every phase of a step, and the run that goes on by itself ends with the same bits.

Two runs of real processes: in one a replica of whatever is lost lives, and no checkpoint is read; in the
other none does, and the run goes back to its last checkpoint by itself. Ranks are given by a plan, so that
arithmetic has the same order however often a spare takes a place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.history import read_history
from coordinator.store import Store
from deploy.local import LocalCluster, LocalOptions
from deploy.processes import Child, Event
from scheduler.exit_codes import ExitCode

TEXT = Path(__file__).parent.parent / "data" / "text.txt"
STEPS, GLOBAL_BATCH = 14, 8
JOB = f"""
name: survive
model: {{family: gpt2, layers: 2, hidden: 32, heads: 4}}
data: {{files: ["{TEXT}"], held_out: 0.05, eval_samples: 4}}
sequence_length: 16
global_batch: {GLOBAL_BATCH}
micro_batch: 2
steps: {STEPS}
optimizer: {{lr: 1e-2, warmup_steps: 2, eps: 1e-4}}
checkpoint: {{every: 4, keep: 2}}
parallelism: {{stages: 2, replicas: REPLICAS}}
"""
PLAN = {
    "version": 1,
    "placement": [["w0", "w1"], ["w2", "w3"]],
    "partition": [[0, 2], [2, 4]],
    "micro_batches": [2, 2],
    "schedule": "1f1b",
    "micro_batch": 2,
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("recovery")
    for replicas in (1, 2):
        (found / f"job-{replicas}.yaml").write_text(JOB.replace("REPLICAS", str(replicas)))
    return found


def run(
    directory: Path, name: str, plan: Mapping[str, object], spares: int, faults: Sequence[str]
) -> tuple[int, list[Event]]:
    """Run to the end with these faults; the coordinator's exit code and what it said."""
    with cluster_of(directory, name, plan, spares, faults, {}) as cluster:
        events = list(cluster.events())
        code = cluster.wait()
        left = [name for name, child in cluster.workers.items() if child.running]
    assert left == []
    return code, events


def cluster_of(
    directory: Path,
    name: str,
    plan: Mapping[str, object],
    spares: int,
    faults: Sequence[str],
    more: Mapping[str, tuple[str, ...]],
    **changes: float,
) -> LocalCluster:
    (directory / f"{name}.json").write_text(json.dumps(plan))
    placement = plan["placement"]
    assert isinstance(placement, list)
    fail_at = tuple(word for fault in faults for word in ("--fail-at", fault))
    options = LocalOptions(
        workers=sum(map(len, placement)) + spares,
        state_dir=directory / name,
        plan=directory / f"{name}.json",
        options_of={**more, "worker": (*more.get("worker", ()), *fail_at)},
    )
    options = replace(options, **changes)  # type: ignore[arg-type]
    return LocalCluster(directory / f"job-{len(placement)}.yaml", options)


def weights(directory: Path, name: str) -> dict[str, str]:
    """File -> hash, of the last checkpoint: weights and optimizer state of every layer."""
    last = directory / name / "checkpoints" / f"step-{STEPS:06d}"
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(last.glob("*.safetensors"))}


def assert_exact(directory: Path, name: str) -> None:
    """Every sample of every step once, whatever was done twice on the way."""
    with Store(directory / name, read_only=True) as store:
        assert store.ledger().ranges == ((0, STEPS * GLOBAL_BATCH),)
    assert [s.step for s in read_history(directory / name).steps] == list(range(STEPS))


@pytest.fixture(scope="module")
def undisturbed(directory: Path) -> dict[str, str]:
    code, _ = run(directory, "undisturbed", PLAN, 0, ())
    assert code == ExitCode.OK
    assert_exact(directory, "undisturbed")
    found = weights(directory, "undisturbed")
    assert len(found) == 8
    return found


def test_while_a_replica_lives_any_phase_may_lose_a_worker_and_not_a_bit_is_lost(
    directory: Path, undisturbed: dict[str, str]
) -> None:
    faults = ("1:1:backward@1:kill", "2:0:reduction@3:kill", "3:3:commit@5:kill")
    code, events = run(directory, "replica-lives", PLAN, 3, faults)
    assert code == ExitCode.OK
    recoveries = [e for e in events if e["event"] == "recovery"]
    assert [(e["way"], e["step"]) for e in recoveries] == [("repair", 1), ("repair", 3), ("repair", 6)]
    assert all("come from" in e["reason"] for e in recoveries), "from a peer, not from a checkpoint"
    assert [e["step"] for e in events if e["event"] == "step"] == list(range(1, STEPS + 1))
    assert_exact(directory, "replica-lives")
    assert weights(directory, "replica-lives") == undisturbed


def test_a_stage_lost_with_its_only_holder_goes_back_to_the_checkpoint_by_itself(
    directory: Path, undisturbed: dict[str, str]
) -> None:
    alone = PLAN | {"placement": [["w0", "w1"]], "micro_batches": [4]}
    code, _ = run(directory, "alone", alone, 0, ())
    assert code == ExitCode.OK
    faults = ("1:0:forward@2:kill", "2:1:vote@5:kill", "3:0:save@8:kill")
    code, events = run(directory, "none-lives", alone, 3, faults)
    assert code == ExitCode.OK
    recoveries = [e for e in events if e["event"] == "recovery"]
    assert [(e["way"], e["step"]) for e in recoveries] == [("repair", 0), ("repair", 4), ("repair", 4)]
    committed = [e["step"] for e in events if e["event"] == "step"]
    assert committed == [*range(1, 3), *range(1, 6), *range(5, 9), *range(5, STEPS + 1)]
    assert_exact(directory, "none-lives")
    assert weights(directory, "none-lives") == weights(directory, "alone")
    assert weights(directory, "alone").keys() == undisturbed.keys()


def test_a_worker_that_stalls_and_comes_back_with_its_layers_costs_no_step(directory: Path) -> None:
    """And so does a coordinator that is killed: the workers wait for the one that is started again."""
    alone = PLAN | {"placement": [["w0", "w1"]], "micro_batches": [4]}
    more = {"coordinator": ("--silence", "3"), "worker": ("--rejoin-timeout", "120")}
    faults = ("1:1:forward@2:stop=8",)
    with cluster_of(directory, "stalls", alone, 0, faults, more, wait_for_workers_s=120.0) as cluster:
        events = []
        for event in cluster.events():
            events.append(event)
            if event["event"] == "step" and event["step"] == 6:
                cluster.coordinator.kill()
        port = cluster.address.rpartition(":")[2]
        again = Child(
            "again", cluster.coordinator_argv(f"127.0.0.1:{port}", resume=True), cluster.logs / "again.log"
        )
        try:
            events += list(again.events())
            code = again.process.wait()
        finally:
            again.stop()
        for child in cluster.workers.values():
            child.process.wait(60)
    assert code == ExitCode.OK
    assert next(e["step"] for e in events if e["event"] == "recovery") == 2
    committed = [e["step"] for e in events if e["event"] == "step"]
    assert committed == sorted(set(committed)), "no step was done twice"
    assert_exact(directory, "stalls")

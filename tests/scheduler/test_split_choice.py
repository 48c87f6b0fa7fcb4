"""What replicas share where the job leaves it open: the shorter step, told against the other; what fits."""

from __future__ import annotations

import re

import pytest

from scheduler.analytic import job_profile
from scheduler.cost import stage_memory_bytes
from scheduler.job import JobError, JobSpec, ParallelismSpec, parse_job
from scheduler.partition import DoesNotFit
from scheduler.plan import Plan, PlanError
from scheduler.planner import make_plan
from scheduler.sequence import Split
from scheduler.settings import Setting, priced
from scheduler.topology import Topology
from scheduler.units import duration
from tests.scheduler.test_sequence import JOB, a_job, a_network, profiles


def asking(job: JobSpec, **keys: object) -> JobSpec:
    """The job with these keys of `parallelism`; without any, auto."""
    spec = ParallelismSpec.model_validate(keys) if keys else "auto"
    return job.model_copy(update={"parallelism": spec})


def a_job_of(parallelism: str, layers: str = "2", more: str = "") -> JobSpec:
    head, _, _ = JOB.partition("parallelism:")
    text = head.replace("LAYERS", layers).replace("LENGTH", "512")
    return parse_job(f"{text}parallelism: {parallelism}\n{more}", "t.yaml")


def planned(job: JobSpec, network: Topology, speed: float = 1e12) -> Plan:
    model = job_profile(job)
    return make_plan(job, model, profiles(model, [speed] * len(network)), network, 1)


def the_both(job: JobSpec, network: Topology, shape: tuple[int, int]) -> dict[Split, Plan]:
    splits: tuple[Split, ...] = ("batch", "sequence")
    asked = {"stages": shape[0], "replicas": shape[1]}
    return {split: planned(asking(job, **asked, split=split), network) for split in splits}


@pytest.mark.parametrize(
    ("batch", "bandwidth_Bps", "best"),
    [(8, 1e7, "batch"), (3, 1e10, "sequence")],
    ids=["even shares, slow links", "odd shares, fast links"],
)
def test_the_shorter_step_is_taken_and_told_against_the_other(
    batch: int, bandwidth_Bps: float, best: Split
) -> None:
    """Of three samples one replica of two has two; of sequences each has half, the later one more pairs."""
    job = a_job(1, 2, 256).model_copy(update={"global_batch": batch, "micro_batch": 1})
    network = a_network(2, 1e-6, bandwidth_Bps)
    each = the_both(job, network, (1, 2))
    plan = planned(asking(job, stages=1, replicas=2, split="auto"), network)
    other = each["sequence" if best == "batch" else "batch"]
    assert plan.split == best
    assert plan.predicted_step_s == each[best].predicted_step_s < other.predicted_step_s
    assert plan.placement == each[best].placement
    more = duration(other.predicted_step_s - plan.predicted_step_s)
    share = {"batch": "the batch: sharing every sequence", "sequence": "every sequence: sharing the batch"}
    told = f"Replicas share {share[best]} takes {duration(other.predicted_step_s)} (1 x 2), {more} more."
    assert plan.reasons[1] == told
    again = planned(asking(job, stages=1, replicas=2, split="auto"), network)
    assert again == plan, "the same seed, the same plan"


def test_more_replicas_than_micro_batches_can_only_share_sequences() -> None:
    job = a_job(1, 8, 2048)
    assert job.micro_batches == 4
    plan = planned(asking(job, stages=1, replicas=8, split="auto"), a_network(8, bandwidth_Bps=1e10))
    assert plan.split == "sequence"
    assert plan.reasons[1].startswith(
        "Replicas share every sequence: sharing the batch cannot be: found 8 replicas, required at most 4"
    )


def test_with_shape_and_split_open_all_of_both_are_planned() -> None:
    job = a_job(1, 2, 4096).model_copy(update={"global_batch": 1, "micro_batch": 1})
    network = a_network(4, 1e-4, 1e11)
    plan = planned(asking(job, split="auto"), network)
    alone = planned(asking(job), network)
    shared = planned(asking(job, split="sequence"), network)
    assert (plan.split, alone.split, shared.split) == ("sequence", "batch", "sequence")
    assert plan.placement == shared.placement
    assert plan.predicted_step_s < 0.5 * alone.predicted_step_s
    assert shared.n_replicas > 1


def memory_for(job: JobSpec, shards: int) -> int:
    """What a device needs that holds all layers of one of so many shards."""
    model = job_profile(job)
    shard = priced(Setting(shards=shards), model, (), a_network(1)).model
    return stage_memory_bytes(shard, 0, len(model.layers), 1)


def test_a_context_that_fits_in_no_other_way_is_shared_where_all_is_open() -> None:
    job = asking(a_job(1, 4, 8192, layers="1").model_copy(update={"global_batch": 2, "micro_batch": 2}))
    network = a_network(4, memory=memory_for(job, 4))
    plan = planned(job, network)
    assert (plan.split, plan.n_replicas) == ("sequence", 4)
    assert re.match(
        r"Replicas share every sequence: sharing the batch, no cut into . stages? fits: .* are missing",
        plan.reasons[1],
    )
    roomy = planned(job, a_network(4, memory=100 * memory_for(job, 4)))
    assert roomy.split == "batch"
    assert "share every sequence" not in roomy.explain()


def test_a_job_that_asks_for_the_batch_is_told_that_sequences_would_fit() -> None:
    job = a_job(1, 4, 8192)
    asked = asking(job, stages=1, replicas=4)
    network = a_network(4, memory=memory_for(job, 4))
    with pytest.raises(DoesNotFit, match=r"parallelism\.split: sequence\), which fits as 1 x 4") as caught:
        planned(asked, network)
    assert caught.value.missing_bytes > 0
    plan = planned(asking(job, stages=1, replicas=4, split="auto"), network)
    assert plan.split == "sequence"
    assert "sharing the batch cannot be: no cut into 1 stage fits" in plan.reasons[1]
    less = a_network(4, memory=memory_for(job, 4) // 4)
    with pytest.raises(DoesNotFit) as caught:
        planned(asked, less)
    assert "split" not in str(caught.value)
    with pytest.raises(DoesNotFit, match="nor can replicas share every sequence: no cut into"):
        planned(asking(job, stages=1, replicas=4, split="auto"), less)


@pytest.mark.parametrize(
    ("layers", "more", "why"),
    [
        ("[[ssd, mlp]]", "", "block.00 has 'ssd', which carries a state from each position to the next"),
        ("2", "local_steps: {every: 2}", "replicas step alone (local_steps)"),
    ],
)
def test_a_model_that_cannot_be_divided_shares_the_batch(layers: str, more: str, why: str) -> None:
    asked = a_job_of("{stages: 1, replicas: 2, split: auto}", layers, more)
    assert (asked.splits, asked.split) == (("batch",), "batch")
    plan = planned(asked, a_network(2))
    assert plan.split == "batch"
    assert plan.reasons[1] == f"Replicas share the batch: sequences cannot be divided, because {why}."
    plain = planned(asking(asked, stages=1, replicas=2), a_network(2))
    assert "Replicas share the batch" not in plain.explain()


def test_one_device_shares_nothing() -> None:
    job = a_job(1, 2, 64)
    assert planned(asking(job, split="auto"), a_network(1)).n_replicas == 1
    with pytest.raises(PlanError, match="found 1 device, required 2 at least to share sequences"):
        planned(asking(job, split="sequence"), a_network(1))


def test_what_a_job_may_leave_open() -> None:
    assert a_job(1, 2).asked_shape == (1, 2)
    open_job = asking(a_job(1, 2), split="auto")
    assert open_job.asked_shape is None
    assert open_job.splits == ("batch", "sequence")
    assert open_job.sharing("sequence").splits == ("sequence",)
    assert open_job.sharing("sequence").most_replicas == 512
    assert asking(a_job(1, 2)).splits == ("batch",)
    with pytest.raises(JobError, match=r"parallelism\.replicas: found replicas without stages"):
        a_job_of("{replicas: 2, split: auto}")
    with pytest.raises(JobError, match="found 9 replicas for 4 micro-batches"):
        a_job_of("{stages: 1, replicas: 9}")
    assert a_job_of("{stages: 1, replicas: 9, split: auto}").asked_shape == (1, 9)

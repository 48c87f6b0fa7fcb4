"""Four workers' real layers against what their profile says of them.

Parameters, optimizer state and boundaries to the byte; what is saved within what no layer owns: tables of
rotary positions, which blocks share, and a scalar loss.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from scheduler.cost import stage_memory
from scheduler.job import JobSpec
from scheduler.profile import ModelProfile
from scheduler.schedule import in_flight
from tests.worker.model.shapes import kept
from tests.worker.pipelines import Rank, in_threads, make_job, make_plan, make_ranks, tokens_of
from worker.profiler import profile_model


def profiled(job: JobSpec) -> ModelProfile:
    """What a worker reports before it is given a plan."""
    layers, _ = profile_model(job, job.shape, torch.device("cpu"), "w", time.perf_counter)
    return ModelProfile(layers, job.profiled_micro_batch, job.sequence_length)


def n_bytes_of(rank: Rank) -> dict[str, Any]:
    """One step with everything weighed: what forwards keep and how much is held at the fullest moment."""
    forward, backward = rank.stage.forward, rank.stage.backward
    parameters = [p for layer in rank.stage.owned for p in layer]
    held: dict[int, int] = {}
    found: dict[str, Any] = {"saved": set(), "most": 0, "in_flight": 0}

    def weighed_forward(mb: int, x: Tensor, *more: Any) -> Tensor:
        if not x.is_floating_point():
            x = x.clone()  # tokens are a view here, which would keep the whole global batch alive
        y, n_bytes = kept(partial(forward, mb, x, *more), parameters)
        held[mb] = n_bytes
        found["saved"].add(n_bytes)
        found["most"] = max(found["most"], sum(held.values()))
        found["in_flight"] = max(found["in_flight"], rank.stage.in_flight)
        return y

    def weighed_backward(mb: int, *more: Any) -> Tensor | None:
        del held[mb]
        return backward(mb, *more)

    rank.stage.forward = weighed_forward  # type: ignore[method-assign, assignment]
    rank.stage.backward = weighed_backward  # type: ignore[method-assign, assignment]
    result = rank.run_step(0)
    found["parameters"] = sum(p.nbytes for p in parameters)
    states = [rank.optimizer.layer_state(i) for i in range(len(rank.stage.layers))]
    own = {v.data_ptr(): v for state in states for name, v in state.items() if not name.endswith(".step")}
    found["state"] = sum(v.nbytes for v in own.values())
    sends = [s for s in result.spans if s.kind == "send" and s.mb >= 0]
    found["links"] = {(x.kind, x.peer): x.sent_bytes for x in result.links if x.sent_bytes}
    found["sent"] = {(s.peer > rank.context.rank): s.n_bytes for s in sends}
    return found


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize(("stages", "shares"), [(4, (4,)), (2, (2, 2)), (1, (1, 1, 1, 1))])
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_profiles_weigh_what_workers_hold(
    family: str, stages: int, shares: tuple[int, ...], schedule: str
) -> None:
    job = make_job(family)
    model = profiled(job)
    plan = make_plan(job, stages, shares, schedule)
    shared = 0 if family == "gpt2" else 4 * 16 * job.model.hidden // job.model.heads  # cosines and sines
    ranks = make_ranks(job, plan)
    for rank, found in zip(ranks, in_threads(ranks, n_bytes_of), strict=True):
        start, stop = plan.partition[rank.context.stage]
        memory = stage_memory(model, start, stop)
        # A tied weight counts as the smaller of its layers, which is larger by a norm than what is shared.
        norm = sum(p.nbytes for p in rank.stage.layers[-1].parameters() if p.ndim == 1)
        tied = norm if stages == 1 and job.model.tied else 0
        assert found["parameters"] == memory.parameter_bytes + tied
        assert found["state"] == memory.state_bytes + 2 * tied
        (saved,) = found["saved"]
        assert memory.saved_bytes <= saved <= memory.saved_bytes + shared * (stop - start) + 4
        actions = plan.actions(rank.context.rank)
        assert found["in_flight"] == in_flight(actions)
        assert found["most"] == in_flight(actions) * saved
        if not rank.stage.is_last:
            assert found["sent"][True] == model.layers[stop - 1].boundary_bytes
        if not rank.stage.is_first:
            assert found["sent"][False] == model.layers[start - 1].boundary_bytes


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_recomputing_workers_hold_their_inputs(family: str) -> None:
    job = make_job(family)
    plan = make_plan(job, 4, (4,), "gpipe", recompute=True)
    model = replace(profiled(job), recompute=True)
    ranks = make_ranks(job, plan)
    for rank in ranks:  # alone, so that forwards wait for nobody
        start, stop = plan.partition[rank.context.stage]
        tokens = tokens_of(job, 0)[:2]
        x = torch.zeros(2, job.sequence_length, job.model.hidden)
        parameters = [p for layer in rank.stage.owned for p in layer]
        forward = partial(
            rank.stage.forward,
            0,
            tokens[:, :-1] if rank.stage.is_first else x,
            tokens[:, 1:] if rank.stage.is_last else None,
        )
        assert kept(forward, parameters)[1] == 0, "autograd keeps nothing between forward and backward"
        saved = rank.stage._saved[0]
        holds = sum(t.numel() * t.element_size() for t in (saved.x, saved.targets) if t is not None)
        assert saved.y is None
        assert holds == stage_memory(model, start, stop).saved_bytes

"""Documents that are kept apart: each part, and each model in a pipeline, is what it is for each alone."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from scheduler.analytic import layer_costs
from scheduler.job import DataSpec, JobError, JobSpec, parse_job
from scheduler.layer_cost import Sizes
from scheduler.pattern import parse_part
from tests.worker import pipelines
from tests.worker.model.counting import counting
from tests.worker.model.shapes import kept
from tests.worker.model.test_mixers import CAUSAL, PARTS, block_of, close, input_of
from tests.worker.pipelines import (
    fresh_layers,
    in_threads,
    make_job,
    make_plan,
    make_ranks,
    tokens_of,
    train,
    train_by,
)
from worker.model import Head, Layer, ModelError
from worker.model.documents import documents_of, positions_in
from worker.step import run_eval

APART = tuple(part for part in PARTS if parse_part(part).keeps_documents_apart)
SEQUENCE = tuple(part for part in APART if parse_part(part).is_sequence)
LENGTH = 40
BORDERS = ((1, 2, 3, 9, 16, 31), (8, 20, 32), (), (39,))
"""Where documents begin, of each sample: at the ends of chunks, within them, several in one, none."""


def documents() -> Tensor:
    at = torch.arange(LENGTH)
    return torch.stack([sum((at >= b).long() for b in borders) + 0 * at for borders in BORDERS])


def pieces() -> Iterator[tuple[int, int, int]]:
    """(sample, begin, end) of each document."""
    for i, borders in enumerate(BORDERS):
        edges = (0, *borders, LENGTH)
        yield from ((i, a, b) for a, b in pairwise(edges))


def test_which_is_whose_and_where_each_begins() -> None:
    tokens = torch.tensor([[5, 9, 5, 5, 9, 9, 5], [9, 5, 5, 5, 5, 5, 9]])
    found = documents_of(tokens, 9)
    assert found.tolist() == [[0, 1, 1, 1, 2, 3, 3], [1, 1, 1, 1, 1, 1, 2]]
    assert positions_in(found).tolist() == [[0, 0, 1, 2, 0, 0, 1], [0, 1, 2, 3, 4, 5, 0]]


@pytest.mark.parametrize("part", SEQUENCE)
def test_a_part_is_what_it_is_for_each_document_alone(part: str) -> None:
    block = block_of(part)
    x = input_of(len(BORDERS), LENGTH).requires_grad_()
    y, _ = block(x, None, documents())
    alone = torch.zeros_like(y)
    for i, a, b in pieces():
        alone[i, a:b] = block(x[i : i + 1, a:b])[0][0]
    close(y, alone)
    assert not torch.allclose(y, block(x)[0]) or part == "attention window=1", "it matters"
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    inputs = (x, *block.parameters())
    ours, theirs = (torch.autograd.grad(z, inputs, g) for z in (y, alone))
    for one, other in zip(ours, theirs, strict=True):
        close(one, other)


@pytest.mark.parametrize("part", [part for part in PARTS if part not in APART])
def test_parts_that_go_on_from_one_to_the_next_refuse(part: str) -> None:
    block = block_of(part)
    with pytest.raises(ModelError, match=r"documents that are kept apart.*required"):
        block(input_of(len(BORDERS), LENGTH), None, documents())


@pytest.mark.parametrize("part", [part for part in SEQUENCE if part in CAUSAL])
def test_closed_forms_are_what_is_counted(part: str) -> None:
    block, x = block_of(part, torch.float32), input_of(4, LENGTH, torch.float32).requires_grad_()
    cost = layer_costs(block.model, Sizes(4, LENGTH, 4, 4, documents_apart=True))["block.00"]
    block(x)
    with counting() as forwards:
        y, size = kept(lambda: block(x, None, documents())[0], list(block.parameters()))
    with counting() as backwards:
        torch.autograd.backward(y.sum())
    assert cost.forward_flops == forwards.get_total_flops()
    assert cost.backward_flops == backwards.get_total_flops()
    shared = 2 * 64 * 4 * 4 + 2 * documents().nbytes  # rotations; the documents, and those of chunks
    assert 0.9 * cost.saved_bytes <= size <= 1.1 * cost.saved_bytes + shared


def job_of(family: str) -> JobSpec:
    job = make_job(family)
    layers = (
        ("attention", "mlp"),
        ("attention window=3", "experts experts=2"),
        ("ssd state=4 chunk=4", "delta chunk=4"),
    )
    model = job.model.model_copy(update={"layers": layers})
    data = DataSpec(files=("none",), documents="apart")
    return job.model_copy(update={"model": model, "data": data, "steps": 4})


SEPARATOR = 1


@pytest.fixture
def few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few that the separator comes often, and at every place of a sample."""
    monkeypatch.setattr(pipelines, "VOCAB", 6)


def summed_alone(layers: list[Layer], tokens_BT: Tensor) -> Tensor:
    """Cross entropy of all documents, each run by itself."""
    head, losses = layers[-1], []
    assert isinstance(head, Head)
    for row in tokens_BT:
        begins = [t for t in range(1, len(row) - 1) if row[t] == SEPARATOR]
        edges = [0, *begins, len(row) - 1]
        for a, b in pairwise(edges):
            x = row[None, a:b]
            for layer in layers[:-1]:
                x = layer(x)[0]
            losses.append(head.loss(x, row[None, a + 1 : b + 1]))
    return torch.stack(losses).sum()


@pytest.mark.usefixtures("few_tokens")
@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("stages", "shares"), [(1, (2,)), (2, (3, 1)), (4, (4,))])
def test_pipelines_train_as_if_each_document_were_alone(
    family: str, recompute: bool, stages: int, shares: tuple[int, ...]
) -> None:
    job = job_of(family)
    begins = sum(int((tokens_of(job, step)[:, 1:-1] == SEPARATOR).sum()) for step in range(job.steps))
    assert begins > 10, "there are documents"
    n_targets = job.global_batch * job.sequence_length
    losses, expected = train_by(
        job, lambda layers, step: summed_alone(layers, tokens_of(job, step)) / n_targets
    )
    run = train(job, make_plan(job, stages, shares, recompute=recompute), separator=SEPARATOR)
    assert run.losses == pytest.approx(losses, rel=1e-5)
    for name, value in run.weights().items():
        assert (value - expected[name]).abs().max() <= 1e-4 * expected[name].abs().max(), name


@pytest.mark.usefixtures("few_tokens")
def test_evaluation_keeps_them_apart_too() -> None:
    job = job_of("llama")
    ranks = make_ranks(job, make_plan(job, 2, (4,)), separator=SEPARATOR)
    tokens = tokens_of(job, 0)
    found = in_threads(
        ranks,
        lambda rank: run_eval(rank.context, rank.stage, 0, 6, lambda ids: tokens[list(ids)], lambda: 0.0),
    )
    layers = fresh_layers(job, 0, job.n_layers)
    assert sum(loss for loss, _ in found) == pytest.approx(summed_alone(layers, tokens[:6]).item(), rel=1e-5)


TEXT = """
name: tiny
model: {family: llama, layers: [[PART, mlp]], hidden: 32, heads: 4, vocab: 257, max_positions: 32}
data: {files: [none], documents: apart}
sequence_length: 32
global_batch: 8
micro_batch: 2
steps: 2
"""


@pytest.mark.parametrize("part", ["s4d", "hyena", "log_ssd", "attention butterfly=4"])
def test_a_job_with_a_part_that_cannot_is_refused(part: str) -> None:
    parse_job(TEXT.replace("PART", "ssd"), "job")
    with pytest.raises(
        JobError, match=rf"'{part}', which goes on.*required parts that begin anew \(attention"
    ):
        parse_job(TEXT.replace("PART", part), "job")


def test_shards_of_sequences_do_not_keep_them_apart() -> None:
    text = TEXT.replace("PART", "attention") + "parallelism: {stages: 1, replicas: 2, split: sequence}\n"
    with pytest.raises(JobError, match=r"data.documents: found apart beside.*required joined"):
        parse_job(text, "job")
    parse_job(text.replace("apart", "joined"), "job")

"""What experts do while they train: token rounding against a slow form of it, the balancing loss against its
definition, both in pipelines, and what is kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from scheduler.analytic import layer_costs
from scheduler.job import JobError, JobSpec, parse_job
from scheduler.layer_cost import Sizes
from tests.worker.model.shapes import kept
from tests.worker.model.test_mixers import block_of, close, input_of, mixer_of
from tests.worker.pipelines import make_job, make_plan, tokens_of, train, train_by
from worker.model import Head, Layer
from worker.model.experts import Experts, rounded, unevenness
from worker.model.training import training


def logits_of(rows: int, experts: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(rows, experts, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("tile", [1, 3, 4, 8])
@pytest.mark.parametrize(("rows", "experts", "top"), [(40, 4, 2), (33, 5, 1), (9, 3, 3)])
def test_rounding_is_what_it_says_expert_by_expert(rows: int, experts: int, top: int, tile: int) -> None:
    logits = logits_of(rows, experts)
    chosen = logits.topk(top, dim=-1).indices
    weights, places, counts = rounded(logits, chosen, tile)
    likings = logits.softmax(-1)
    taken: list[list[int]] = []
    for e in range(experts):
        mine = [r for r in range(rows) if e in chosen[r]]
        others = [r for r in range(rows) if e not in chosen[r]]
        wanted = min(range(0, rows + 1, tile), key=lambda n: (abs(n - len(mine)), -n))
        by_liking = [sorted(some, key=lambda r: -likings[r, e].item()) for some in (mine, others)]
        taken.append(sorted((by_liking[0] + by_liking[1])[:wanted]))
    assert counts.tolist() == [len(rows) for rows in taken]
    assert places.tolist() == [r * experts + e for e in range(experts) for r in taken[e]]
    for r in range(rows):
        its = [e for e in range(experts) if r in taken[e]]
        expected = torch.zeros(experts, dtype=torch.float64)
        expected[its] = logits[r, its].softmax(-1)
        close(weights[r], expected)


@pytest.mark.parametrize("tile", [4, 16])
def test_rounded_experts_are_the_dense_form(tile: int) -> None:
    mixer, x = mixer_of(f"experts experts=4 inner=12 tile={tile}"), input_of().requires_grad_()
    inputs = (x, *mixer.parameters())
    with training():
        y, dense = mixer(x)[0], mixer.dense(x)
        assert not torch.equal(y, mixer_of("experts experts=4 inner=12")(x)[0]), "it rounds something"
    close(y, dense)
    ours, theirs = (torch.autograd.grad(z.square().sum(), inputs) for z in (y, dense))
    for a, b in zip(ours, theirs, strict=True):
        close(a, b)


def test_outside_of_training_every_position_takes_what_it_likes_best() -> None:
    plain, both = (
        mixer_of("experts experts=4 inner=12"),
        mixer_of("experts experts=4 inner=12 tile=16 balance=1"),
    )
    x = input_of()
    assert torch.equal(plain(x)[0], both(x)[0])
    with training() as losses:
        both(x[:1, :15])  # less than a tile of rows is not rounded
        assert len(losses) == 1
        plain(x)
        assert len(losses) == 1


def test_the_balancing_loss_written_out() -> None:
    logits = logits_of(3 * 7, 5).view(3, 7, 5)
    expected = 0.0
    for sample in logits:
        chosen = [sorted(range(5), key=lambda e: -row[e].item())[:2] for row in sample]
        for e in range(5):
            share = 5 / (2 * 7) * sum(e in its for its in chosen)
            expected += 7 * share * sum(row.softmax(-1)[e].item() for row in sample) / 7
    assert unevenness(logits, 2).item() == pytest.approx(expected)
    # As many positions for each expert, liked alike over the sample: 1 a position, the least.
    even = 3 * torch.eye(4, dtype=torch.float64).repeat(2, 1)[None]
    assert unevenness(even, 1).item() == pytest.approx(8)
    assert unevenness(even[:, :1].expand(-1, 8, -1), 1).item() > 12


def test_the_balancing_loss_makes_use_of_experts_even() -> None:
    """A router that puts nearly all on one expert, trained by the loss alone."""
    router = nn.Linear(6, 4, bias=True, dtype=torch.float64)
    with torch.no_grad():
        router.bias.copy_(torch.tensor([2.0, 0, 0, 0]))
    x = torch.randn(8, 32, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    optimizer = torch.optim.Adam(router.parameters(), lr=0.05)
    first = unevenness(router(x), 1).item() / (8 * 32)
    for _ in range(100):
        optimizer.zero_grad()
        loss = unevenness(router(x), 1) / (8 * 32)
        torch.autograd.backward(loss)
        optimizer.step()
    assert first > 1.4
    assert loss.item() < 1.1


def experts_job(options: str) -> JobSpec:
    job = make_job("llama")
    model = job.model.model_copy(
        update={"layers": (("attention", f"experts experts=4 inner=24 {options}"),) * 2 + (("mlp",),)}
    )
    return job.model_copy(update={"model": model, "steps": 5})


def trained_plainly(job: JobSpec, coefficient: float, rows: int | None = None) -> dict[str, Tensor]:
    """One process and autograd, the balancing loss from its definition; in pieces of `rows` samples (all)."""

    def balanced(layers: list[Layer], step: int) -> Tensor:
        head, logits = layers[-1], list[Tensor]()
        assert isinstance(head, Head)
        routers = [m.router for m in nn.ModuleList(layers).modules() if isinstance(m, Experts)]
        hooks = [r.register_forward_hook(lambda _, __, out: logits.append(out)) for r in routers]
        total = torch.zeros(())
        for tokens in torch.split(tokens_of(job, step), rows or job.global_batch):
            x = tokens[:, :-1]
            with training():
                for layer in layers[:-1]:
                    x = layer(x)[0]
            total = total + head.loss(x, tokens[:, 1:])
        for hook in hooks:
            hook.remove()
        assert len(logits) == len(routers) * (job.global_batch // (rows or job.global_batch))
        total = total + coefficient * sum(unevenness(out, 2) for out in logits)
        return total / (job.global_batch * job.sequence_length)

    return train_by(job, balanced)[1]


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    assert found.keys() == expected.keys()
    return all(
        (value - expected[name]).abs().max() <= 1e-4 * expected[name].abs().max()
        for name, value in found.items()
    )


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("shares", [(4,), (1,), (3, 1), (4, 4)])
def test_balanced_experts_train_in_any_plan_as_in_one_process(
    shares: tuple[int, ...], recompute: bool
) -> None:
    job = experts_job("balance=0.5")
    expected = trained_plainly(job, 0.5)
    assert not same(trained_plainly(job, 0.0), expected), "the loss matters"
    run = train(job, make_plan(job, 3, shares, recompute=recompute))
    assert same(run.weights(), expected)


@pytest.mark.parametrize(("stages", "shares"), [(1, (4,)), (3, (4,)), (3, (2, 2))])
def test_rounded_experts_train_in_plans_with_the_same_micro_batches_as_in_one_process(
    stages: int, shares: tuple[int, ...]
) -> None:
    job = experts_job("tile=4 balance=0.1")
    expected = trained_plainly(job, 0.1, rows=2)
    assert not same(trained_plainly(experts_job(""), 0.1, rows=2), expected), "rounding matters"
    assert same(train(job, make_plan(job, stages, shares)).weights(), expected)


@pytest.mark.parametrize("shares", [(4,), (3, 1)])
def test_pytorchs_grouped_product_trains_in_any_plan_as_a_product_an_expert_in_one_process(
    shares: tuple[int, ...],
) -> None:
    expected = trained_plainly(experts_job(""), 0.0)
    job = experts_job("kernel=torch")
    assert same(train(job, make_plan(job, 3, shares)).weights(), expected)


@pytest.mark.parametrize("options", ["", "tile=4", "balance=0.1", "tile=4 balance=0.1"])
def test_what_is_kept_while_it_trains_is_what_is_counted(options: str) -> None:
    part = f"experts experts=4 inner=24 {options}"
    block, x = block_of(part, torch.float32), input_of(3, 40, torch.float32).requires_grad_()
    with training() as losses:  # held, as a stage does
        _, size = kept(lambda: block(x)[0], list(block.parameters()))
    assert len(losses) == ("balance" in options)
    expected = layer_costs(block.model, Sizes(3, 40, 4, 4))["block.00"].saved_bytes
    assert 0.9 * expected <= size <= 1.1 * expected


def test_narrow_copies_of_the_experts_matrices_are_not_kept() -> None:
    """bf16 products of float32 weights: what a micro-batch keeps is the same for 4 experts as for 64."""
    sizes = []
    for experts in (4, 64):
        block = block_of(f"experts experts={experts} inner=24", torch.float32)
        x = input_of(3, 40, torch.float32).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            _, size = kept(lambda: block(x)[0], list(block.parameters()))  # noqa: B023
        router = 2 * block.get_parameter("ffn.router.weight").numel()  # autocast's own copy
        sizes.append(size - router - 8 * experts)  # and how many rows each has
    assert sizes[0] == sizes[1]


def test_a_tile_that_is_too_large_for_the_micro_batches_is_refused() -> None:
    text = """
name: tiny
model: {family: llama, layers: [[experts experts=4 top=2 tile=TILE]], hidden: 32, heads: 4, vocab: 257}
data: {files: [none]}
sequence_length: 32
global_batch: 8
micro_batch: MICRO
steps: 2
"""
    parse_job(text.replace("TILE", "16").replace("MICRO", "2"), "job")
    for tile, micro, most in ((17, "2", 16), (16, "1", 8), (16, "auto", 8)):
        with pytest.raises(JobError, match=f"tile={tile}.*required a tile of at most {most}"):
            parse_job(text.replace("TILE", str(tile)).replace("MICRO", micro), "job")

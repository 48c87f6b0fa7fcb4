"""Compressed momentum: what it computes, that replicas stay equal, and that a resumed run is the same run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compression.codec import FeedbackCodec, make_codec
from compression.spec import codec_spec
from scheduler.job import JobSpec
from scheduler.sequence import shard_bounds
from tests.worker.pipelines import Rank, Run, fresh_layers, make_job, make_plan, make_ranks, tokens_of, train
from tests.worker.test_compressed import compressed
from tests.worker.test_residuals import resumed, run_steps, saved
from worker.model import Head
from worker.optimizer import learning_rate

WARMUP = 5
REDUCE = f"momentum:bits=4,group=32,warmup_steps={WARMUP}"


def one_bit_adam(job: JobSpec, replicas: int, steps: int) -> tuple[list[float], dict[str, Tensor]]:
    """One process that plays all replicas of one stage: losses, and the weights in the end."""
    layers, spec = fresh_layers(job, 0, job.n_layers), job.optimizer
    head, (beta1, beta2) = layers[-1], spec.betas
    assert isinstance(head, Head)
    seen: set[int] = set()
    owned = []
    for layer in layers:
        owned.append([p for p in layer.parameters() if id(p) not in seen])
        seen |= {id(p) for p in owned[-1]}
    m = [torch.zeros(sum(p.numel() for p in ps)) for ps in owned]
    v = [torch.zeros_like(x) for x in m]
    to_owner = {(r, j): make_codec(REDUCE) for r in range(replicas) for j in range(replicas)}
    to_all = [make_codec(REDUCE) for _ in range(replicas)]

    def over_the_wire(codec: object, x: Tensor, layer: int) -> Tensor:
        assert isinstance(codec, FeedbackCodec)
        return codec.decode(codec.encode(x, (layer,)), (layer,))

    losses = []
    for step in range(steps):
        tokens, each, loss_sum = tokens_of(job, step), job.global_batch // replicas, 0.0
        gradients: list[list[Tensor]] = []
        for r in range(replicas):
            for start in range(r * each, (r + 1) * each, job.profiled_micro_batch):
                part = tokens[start : start + job.profiled_micro_batch]
                x = part[:, :-1]
                for layer in layers[:-1]:
                    x, _ = layer(x)
                loss = head.loss(x, part[:, 1:])
                loss_sum += loss.item()
                torch.autograd.backward(loss / (job.global_batch * job.sequence_length))
            gradients.append(
                [torch.cat([p.grad.flatten() for p in ps if p.grad is not None]) for ps in owned]
            )
            for p in (p for ps in owned for p in ps):
                p.grad = None
        losses.append(loss_sum / (job.global_batch * job.sequence_length))
        frozen = step >= WARMUP
        sums = []
        for i in range(len(layers)):
            parts = [g[i] for g in gradients]
            if frozen:
                parts = [(1 - beta1) * g + beta1 / replicas * m[i] for g in parts]
            total = torch.empty_like(m[i])
            for j, (a, b) in enumerate(shard_bounds(total.numel(), replicas)):
                shard = torch.zeros(b - a)
                for r in range(replicas):
                    sent = parts[r][a:b]
                    shard += over_the_wire(to_owner[r, j], sent, i) if frozen and r != j else sent
                total[a:b] = over_the_wire(to_all[j], shard, i) if frozen else shard
            sums.append(total)
        norm = float(torch.stack([s.square().sum() for s in sums]).sum().sqrt())
        scale, lr = min(1.0, spec.clip_norm / (norm + 1e-6)), learning_rate(spec, step, job.steps)
        for i, ps in enumerate(owned):
            total = scale * sums[i]
            if frozen:
                m[i] = total
            else:
                m[i] = beta1 * m[i] + (1 - beta1) * total
                v[i] = beta2 * v[i] + (1 - beta2) * total.square()
            root = (v[i] / (1 - beta2 ** min(step + 1, WARMUP))).sqrt() + spec.eps
            update = (m[i] / (1 - beta1 ** (step + 1)) / root).clamp(-1, 1)
            for p, u in zip(ps, torch.split(update, [p.numel() for p in ps]), strict=True):
                with torch.no_grad():
                    p.mul_(1 - lr * (spec.weight_decay if p.ndim >= 2 else 0.0)).sub_(lr * u.view_as(p))
    return losses, {f"{x.name}.{name}": value for x in layers for name, value in x.state_dict().items()}


def trained(
    job: JobSpec, stages: int = 1, replicas: tuple[int, ...] = (2, 2), steps: int | None = None
) -> Run:
    return train(job, compressed(make_plan(job, stages, replicas), reduce=REDUCE), steps)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_ranks_do_what_one_process_does(family: str) -> None:
    job = make_job(family)
    run = trained(job)
    losses, weights = one_bit_adam(job, 2, job.steps)
    torch.testing.assert_close(torch.tensor(run.losses), torch.tensor(losses), rtol=2e-4, atol=0)
    for name, value in run.weights().items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=2e-3, msg=name)


@pytest.mark.parametrize(("stages", "replicas"), [(1, (2, 2)), (2, (3, 1)), (3, (1, 2, 1))])
def test_replicas_hold_the_same_bits_and_the_model_learns(stages: int, replicas: tuple[int, ...]) -> None:
    run = trained(make_job(), stages, replicas)
    for other in range(1, len(replicas)):
        assert all(torch.equal(value, run.weights(other)[name]) for name, value in run.weights().items())
    assert run.losses[-1] < run.losses[WARMUP] < run.losses[0]


def test_ties_between_stages_stay_equal() -> None:
    run = trained(make_job(), 2)
    weights = run.weights()
    assert torch.equal(weights["embedding.weight"], weights["head.weight"])


def test_the_warm_up_is_adam_to_the_last_bit_and_what_follows_is_near_it() -> None:
    job = make_job()
    plain = train(job, make_plan(job, 2, (2, 2)))
    run = trained(job, 2)
    assert run.losses[: WARMUP + 1] == plain.losses[: WARMUP + 1]
    assert run.losses[WARMUP + 1 :] != plain.losses[WARMUP + 1 :]
    assert run.losses[-1] < plain.losses[WARMUP]


def variances(rank: Rank) -> dict[str, Tensor]:
    found = {}
    for i, layer in enumerate(rank.stage.layers):
        for name, value in rank.optimizer.layer_state(i).items():
            if name.endswith("exp_avg_sq"):
                found[f"{layer.name}.{name}"] = value.clone()
    return found


def test_the_variance_is_frozen_and_momentum_is_clipped() -> None:
    job = make_job()
    job = job.model_copy(update={"optimizer": job.optimizer.model_copy(update={"clip_norm": 1e-3})})
    ranks = make_ranks(job, compressed(make_plan(job, 2, (2, 2)), reduce=REDUCE))
    run_steps(ranks, 0, WARMUP)
    before = variances(ranks[0])
    run_steps(ranks, WARMUP, WARMUP + 3)
    assert all(torch.equal(value, before[name]) for name, value in variances(ranks[0]).items())
    squares = 0.0
    for rank in ranks[:2]:
        for i, layer in enumerate(rank.stage.layers):
            for name, value in rank.optimizer.layer_state(i).items():
                if name.endswith("exp_avg") and (layer.name, name) != ("head", "weight.exp_avg"):
                    squares += float(value.double().square().sum())
    assert 0 < squares**0.5 <= 1e-3 * (1 + 1e-5)


def test_a_resumed_run_goes_on_bit_by_bit_where_it_ended() -> None:
    job, stop = make_job(), WARMUP + 3
    for at in (WARMUP - 1, WARMUP, WARMUP + 1):
        plan = compressed(make_plan(job, 2, (2, 2)), reduce=REDUCE)
        ranks = make_ranks(job, plan)
        run_steps(ranks, 0, at)
        files = saved(ranks)
        expected = run_steps(ranks, at, stop)
        again, loaded = resumed(plan, files)
        assert loaded == (2 * (5 + 5 + 2) if at > WARMUP else 0)
        assert run_steps(again, at, stop) == expected


def test_bytes_are_what_the_plan_is_priced_with() -> None:
    job = make_job("llama")
    run = trained(job, 1, (2, 2), steps=WARMUP + 1)
    n = [sum(p.numel() for p in ps) for ps in run.ranks[0].stage.owned]

    def reduced(step: int) -> int:
        links = run.results[0][step].links
        return sum(use.sent_bytes for use in links if use.kind in ("shard", "reduced"))

    assert reduced(WARMUP - 1) == pytest.approx(4 * sum(n), abs=8 * len(n))
    halves = sum(b - a for x in n for a, b in shard_bounds(x, 2)[:1])
    priced = codec_spec(REDUCE).wire_bytes((halves,), 4) + codec_spec(REDUCE).wire_bytes(
        (sum(n) - halves,), 4
    )
    assert reduced(WARMUP) == pytest.approx(priced, abs=8 * len(n))  # a layer's last group may be short
    assert reduced(WARMUP) < reduced(WARMUP - 1) / 7

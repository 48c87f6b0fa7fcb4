"""Local steps: what the ranks compute, what they agree on, what they send, how they resume."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from compression.codec import make_codec
from scheduler.job import JobSpec, LocalStepsSpec
from scheduler.plan import Plan
from scheduler.sequence import shard_bounds
from tests.worker.pipelines import Rank, Run, fresh_layers, make_job, make_plan, make_ranks, tokens_of, train
from tests.worker.test_compressed import compressed
from tests.worker.test_residuals import run_steps, saved
from worker.checkpoint import from_bytes, load_local, load_state, load_weights, local_files, stage_files
from worker.model import Head
from worker.optimizer import StageOptimizer, learning_rate
from worker.residuals import load_residuals
from worker.transport import Frame, TransportAborted

EVERY = 3
BITS = "feedback:bits=4,group=32"


def local_job(family: str = "gpt2") -> JobSpec:
    return make_job(family, local_steps=LocalStepsSpec(every=EVERY))


def local_plan(job: JobSpec, stages: int, replicas: tuple[int, ...], reduce: str = "") -> Plan:
    return replace(compressed(make_plan(job, stages, replicas), reduce=reduce), local_steps=EVERY)


def diloco(
    job: JobSpec, replicas: int, steps: int, codec: str
) -> tuple[list[float], list[dict[str, Tensor]]]:
    """One process that plays all replicas of one stage: losses, and each replica's weights in the end."""
    local = job.local_steps
    assert local is not None
    models = [fresh_layers(job, 0, job.n_layers) for _ in range(replicas)]
    optimizers = [StageOptimizer(layers, job.optimizer) for layers in models]

    def owned(r: int) -> list[list[torch.nn.Parameter]]:
        seen: set[int] = set()
        found = []
        for layer in models[r]:
            found.append([p for p in layer.parameters() if id(p) not in seen])
            seen.update(map(id, found[-1]))
        return found

    def flat(ps: list[torch.nn.Parameter]) -> Tensor:
        return torch.cat([p.detach().flatten() for p in ps])

    anchors = [flat(ps) for ps in owned(0)]
    momenta = [torch.zeros_like(a) for a in anchors]
    codecs = {(r, j): make_codec(codec) for r in [*range(replicas), -1] for j in range(replicas)}

    def wired(end: tuple[int, int], x: Tensor, tag: int) -> Tensor:
        return codecs[end].decode(codecs[end].encode(x, (tag,)), (tag,))

    losses, each = [], job.global_batch // replicas
    for step in range(steps):
        piece, moves = step % EVERY, []
        for i in range(len(anchors)):
            a, b = shard_bounds(anchors[i].numel(), EVERY)[piece]
            began = [flat(owned(r)[i])[a:b] for r in range(replicas)]
            changes = [(anchors[i][a:b] - now) / replicas for now in began]
            d = torch.empty(b - a)
            for j, (x, y) in enumerate(shard_bounds(b - a, replicas)):
                tag = i * EVERY + piece
                parts = [c[x:y] if r == j else wired((r, j), c[x:y], tag) for r, c in enumerate(changes)]
                d[x:y] = wired((-1, j), torch.stack(parts).sum(0), tag)
            momenta[i][a:b] = local.momentum * momenta[i][a:b] + d
            anchors[i][a:b] -= local.lr * (d + local.momentum * momenta[i][a:b])
            moves.append((i, a, b, [anchors[i][a:b] - now for now in began]))
        batch, loss_sum = tokens_of(job, step), 0.0
        for r, layers in enumerate(models):
            head = layers[-1]
            assert isinstance(head, Head)
            for start in range(r * each, (r + 1) * each, job.profiled_micro_batch):
                part = batch[start : start + job.profiled_micro_batch]
                h = part[:, :-1]
                for layer in layers[:-1]:
                    h, _ = layer(h)
                loss = head.loss(h, part[:, 1:])
                loss_sum += loss.item()
                torch.autograd.backward(loss / (each * job.sequence_length))
            ps = [p for own in owned(r) for p in own]
            torch.nn.utils.clip_grad_norm_(ps, job.optimizer.clip_norm)
            optimizers[r].step(learning_rate(job.optimizer, step, job.steps))
        for i, a, b, moved in moves:
            for r in range(replicas):
                own = owned(r)[i]
                new = flat(own)
                new[a:b] += moved[r]
                for p, values in zip(own, torch.split(new, [p.numel() for p in own]), strict=True):
                    p.data.copy_(values.view_as(p))
        losses.append(loss_sum / (job.global_batch * job.sequence_length))
    return losses, [{f"{x.name}.{n}": v for x in ls for n, v in x.state_dict().items()} for ls in models]


@pytest.mark.parametrize("codec", ["identity", BITS])
def test_the_ranks_do_what_one_process_does(codec: str) -> None:
    job = local_job()
    run = train(job, local_plan(job, 1, (2, 2), codec))
    losses, weights = diloco(job, 2, job.steps, codec)
    torch.testing.assert_close(torch.tensor(run.losses), torch.tensor(losses), rtol=2e-4, atol=0)
    for r in range(2):
        for name, value in run.weights(r).items():
            torch.testing.assert_close(value, weights[r][name], rtol=0, atol=1e-3, msg=name)
    assert run.losses[-1] < run.losses[0] - 0.2


def anchors(run: Run | list[Rank], replica: int) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for rank in run.ranks if isinstance(run, Run) else run:
        if rank.context.replica == replica:
            assert rank.outer is not None
            for i, layer in enumerate(rank.stage.layers):
                found |= {f"{layer.name}.{name}": x.clone() for name, x in rank.outer.anchored(i).items()}
    return found


@pytest.mark.parametrize(("stages", "replicas"), [(1, (3, 1)), (2, (2, 2)), (3, (1, 2, 1))])
def test_replicas_part_and_hold_the_same_anchor_to_the_last_bit(
    stages: int, replicas: tuple[int, ...]
) -> None:
    job = local_job()
    run = train(job, local_plan(job, stages, replicas, BITS), steps=8)
    first = anchors(run, 0)
    for other in range(1, len(replicas)):
        own = anchors(run, other)
        assert all(torch.equal(value, own[name]) for name, value in first.items())
        weights = run.weights(other)
        assert any(not torch.equal(value, weights[name]) for name, value in run.weights(0).items())
    assert torch.equal(first["embedding.weight"], first["head.weight"]), "a tie over stages stays one"
    for r in range(len(replicas)):
        weights = run.weights(r)
        assert torch.equal(weights["embedding.weight"], weights["head.weight"])


def test_a_step_sends_a_piece_of_what_gradients_are() -> None:
    job = local_job("llama")

    def summed(plan: Plan) -> list[int]:
        run = train(job, plan, steps=EVERY)
        return [
            sum(u.sent_bytes for u in done.links if u.kind in ("shard", "reduced")) for done in run.results[0]
        ]

    whole = summed(make_plan(job, 1, (2, 2)))
    pieces = summed(local_plan(job, 1, (2, 2)))
    assert sum(pieces) == pytest.approx(whole[0], abs=8 * EVERY * job.n_layers)
    assert max(pieces) == pytest.approx(whole[0] / EVERY, abs=16 * job.n_layers)


def saved_locally(ranks: list[Rank]) -> dict[str, bytes]:
    files = saved(ranks)
    for rank in ranks:
        context = rank.context
        assert rank.outer is not None
        if context.replica == 0:
            start = context.plan.partition[context.stage][0]
            files |= stage_files(rank.stage, rank.optimizer, start, rank.outer)
        files |= local_files(rank.outer, rank.stage, rank.optimizer, context.plan, context.rank)
    return files


def resumed(job: JobSpec, plan: Plan, files: dict[str, bytes]) -> tuple[list[Rank], int]:
    def fetch(name: str) -> dict[str, Tensor] | None:
        return from_bytes(files[name], name) if name in files else None

    ranks, loaded = make_ranks(job, plan), 0
    for rank in ranks:
        context = rank.context
        start = context.plan.partition[context.stage][0]
        for i, layer in enumerate(rank.stage.layers):
            name = f"layer-{start + i:04d}"
            load_weights(layer, from_bytes(files[f"{name}.safetensors"], name), name)
            load_state(rank.optimizer, i, from_bytes(files[f"{name}.optimizer.safetensors"], name), name)
        assert job.local_steps is not None
        rank.outer = (
            type(rank.outer)(rank.stage, job.local_steps, start, job.n_layers) if rank.outer else None
        )
        assert rank.outer is not None
        load_residuals(context.codecs, plan, context.rank, fetch)
        loaded += load_local(rank.outer, rank.optimizer, plan, context.rank, fetch)
    return ranks, loaded


@pytest.mark.parametrize("at", [EVERY, EVERY + 1])
def test_a_resumed_run_goes_on_bit_by_bit_where_it_ended(at: int) -> None:
    job = local_job()
    plan = local_plan(job, 2, (2, 2), BITS)
    ranks = make_ranks(job, plan)
    run_steps(ranks, 0, at)
    files = saved_locally(ranks)
    expected = run_steps(ranks, at, at + 4)
    again, loaded = resumed(job, plan, files)
    assert loaded == 2 * job.n_layers
    assert run_steps(again, at, at + 4) == expected
    assert all(torch.equal(x, anchors(again, 1)[name]) for name, x in anchors(ranks, 0).items())


def test_a_round_that_broke_off_is_done_again_from_its_checkpoint() -> None:
    """The checkpoint was taken within a round; two steps later a replica is lost while its piece travels."""
    job = local_job()
    plan = local_plan(job, 2, (2, 2), BITS)
    whole, ranks = make_ranks(job, plan), make_ranks(job, plan)
    run_steps(whole, 0, EVERY + 1)
    expected = run_steps(whole, EVERY + 1, 2 * EVERY + 3)
    run_steps(ranks, 0, EVERY + 1)
    files = saved_locally(ranks)
    run_steps(ranks, EVERY + 1, EVERY + 3)
    lost, passed_on = ranks[2].context.transport, ranks[2].context.transport.send

    def send(frame: Frame) -> None:
        if frame.key.kind == "reduced":  # the others' changes came, and some of their sums are out already
            raise TransportAborted("the cable was cut")
        passed_on(frame)

    lost.send = send  # type: ignore[method-assign]
    with pytest.raises(TransportAborted):
        run_steps(ranks, EVERY + 3, EVERY + 4)
    again, _ = resumed(job, plan, files)
    assert run_steps(again, EVERY + 1, 2 * EVERY + 3) == expected
    for replica in (0, 1):
        now, then = anchors(again, replica), anchors(whole, replica)
        assert all(torch.equal(value, now[name]) for name, value in then.items())


def test_other_replicas_begin_at_the_anchor_with_its_momentum() -> None:
    job = local_job()
    ranks = make_ranks(job, local_plan(job, 2, (2, 2), BITS))
    run_steps(ranks, 0, 5)
    files, before = saved_locally(ranks), anchors(ranks, 0)
    again, loaded = resumed(job, local_plan(job, 1, (2, 1, 1), BITS), files)
    assert loaded == 3 * job.n_layers
    assert all(torch.equal(before[name], value) for name, value in anchors(again, 2).items())
    assert len(run_steps(again, 5, 7)) == 2

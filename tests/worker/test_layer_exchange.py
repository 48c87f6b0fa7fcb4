"""Layers between workers: bit for bit, in parts of several donors, and never a mixture of two states."""

from __future__ import annotations

import pytest
import torch

from tests.worker.pipelines import Rank, in_threads, make_job, make_plan, make_ranks
from worker import layer_exchange
from worker.checkpoint import LayerFileError
from worker.held_layers import HeldLayer, HeldLayers, NotHeld
from worker.layer_exchange import packed, receive_layer, send_part
from worker.memory_transport import MemoryHub, MemoryTransport
from worker.transport import FrameError, TransportAborted


def trained(stages: int, replicas: int) -> tuple[list[Rank], list[HeldLayers]]:
    """Ranks after one step, and what each holds."""
    job = make_job()
    plan = make_plan(job, stages, (4 // replicas,) * replicas)
    ranks = make_ranks(job, plan)
    in_threads(ranks, Rank.run_first)
    held = []
    for rank in ranks:
        mine = HeldLayers(1)
        mine.keep(rank.stage, rank.optimizer, plan.partition[rank.context.stage][0])
        held.append(mine)
    return ranks, held


def same(a: HeldLayer, b: HeldLayer) -> bool:
    pairs = ((a.weights, b.weights), (a.state, b.state))
    return all(x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x) for x, y in pairs)


def transports(n: int) -> list[MemoryTransport]:
    hub = MemoryHub()
    return [MemoryTransport(hub, rank, 2) for rank in range(n)]


@pytest.mark.parametrize("piece_bytes", [1 << 20, 1000])
@pytest.mark.parametrize("donors", [(1,), (1, 2), (2, 1, 3)])
def test_a_layer_arrives_bit_for_bit_from_one_donor_or_several(
    donors: tuple[int, ...], piece_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_exchange, "PIECE_BYTES", piece_bytes)
    _, held = trained(1, 4)
    line = transports(4)
    for layer in (0, 3):
        assert held[1].of(layer, 1).state, "AdamW has a state after a step"
        for part, donor in enumerate(donors):
            blob = packed(held[donor].of(layer, 1))
            send_part(line[donor], 2, donor, 0, (1, layer), blob, (part, len(donors)))
        found = receive_layer(line[0], donors, 1, layer, 1 << 30, 10.0)
        assert same(found, held[0].of(layer, 1))


def test_donors_that_differ_in_one_bit_are_found_out() -> None:
    _, held = trained(1, 2)
    line = transports(3)
    other = held[1].of(2, 1)
    next(iter(other.weights.values())).view(-1)[0] += 1e-3
    for part, donor in enumerate((0, 1)):
        send_part(line[donor], 2, donor, 2, (1, 2), packed(held[donor].of(2, 1)), (part, 2))
    with pytest.raises(LayerFileError, match="its donors do not hold the same bits"):
        receive_layer(line[2], (0, 1), 1, 2, 1 << 30, 10.0)


def test_a_layer_that_is_larger_than_can_be_is_refused_before_it_is_taken() -> None:
    _, held = trained(1, 1)
    line = transports(2)
    send_part(line[0], 2, 0, 1, (1, 2), packed(held[0].of(2, 1)), (0, 1))
    with pytest.raises(FrameError, match="required at most 100"):
        receive_layer(line[1], (0,), 1, 2, 100, 10.0)


def test_a_layer_of_another_step_is_not_given() -> None:
    _, held = trained(2, 1)
    with pytest.raises(
        NotHeld, match=r"layer 4 after step 1 is to be given; found layers \[0, 1\] after step 1"
    ):
        held[0].of(4, 1)
    with pytest.raises(NotHeld, match="after step 2"):
        held[0].of(0, 2)


def test_a_donor_that_is_lost_ends_the_wait() -> None:
    line = transports(2)
    line[1].abort("d is lost")
    with pytest.raises(TransportAborted, match="d is lost"):
        receive_layer(line[1], (0,), 1, 2, 1 << 30, 10.0)

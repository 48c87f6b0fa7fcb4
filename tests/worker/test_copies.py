"""Copies at neighbours: the bits of the step they are of, whatever the stage does afterwards."""

from __future__ import annotations

import threading

import pytest

from tests.worker.pipelines import make_job, make_plan
from tests.worker.test_layer_exchange import same, trained, transports
from worker.copies import Copies, Exchange, Kept
from worker.held_layers import HeldLayer
from worker.memory_transport import MemoryTransport

LAYERS = make_plan(make_job(), 2, (4,)).partition


def exchange(line: list[MemoryTransport], rank: int, most_bytes: int = 1 << 30) -> Exchange:
    """Two ranks that keep each other's stage."""
    other = 1 - rank
    kept = [Kept(other, *LAYERS[other])]
    return Exchange(
        line[rank], line[rank].plan_version, rank, LAYERS[rank][0], [other], kept, most_bytes, 10.0
    )


def copied(step: int = 1) -> tuple[list[Copies], list[dict[int, HeldLayer]]]:
    """What two ranks have of each other after one step, and what their stages were then."""
    ranks, held = trained(2, 1)
    line = transports(2)
    copies, done = [Copies(), Copies()], [threading.Event(), threading.Event()]
    was = [
        {i: HeldLayer(*({k: v.clone() for k, v in x.items()} for x in (h.weights, h.state)))
         for i, h in held[r].layers.items()}
        for r in (0, 1)
    ]  # fmt: skip

    def failed(error: Exception) -> None:
        raise error

    threads: list[threading.Thread] = []
    for r, rank in enumerate(ranks):
        own = copies[r].take(step, 0, rank.stage, rank.optimizer, LAYERS[r][0])
        threads += exchange(line, r).start(step, own, copies[r], done[r].set, failed)
    for thread in threads:
        thread.join(10.0)
    assert all(d.is_set() for d in done)
    for rank in ranks:  # the stage goes on
        for layer in rank.stage.layers:
            for p in layer.parameters():
                p.data.zero_()
    return copies, was


def test_both_have_all_layers_as_they_were_bit_for_bit() -> None:
    copies, was = copied()
    for mine in copies:
        found = mine.at(1)
        assert found is not None
        assert sorted(found.layers) == list(range(LAYERS[-1][1]))
        for i, layer in (was[0] | was[1]).items():
            assert layer.state, "AdamW has a state after a step"
            assert same(found.of(i, 1), layer)


def test_what_is_loaded_from_is_not_what_is_kept() -> None:
    """A stage that is loaded puts its own tensors where it loaded from; the copies must outlast that."""
    copies, was = copied()
    first, second = copies[0].at(1), copies[0].at(1)
    assert first is not None
    assert second is not None
    first.layers[0] = was[1][LAYERS[1][0]]
    assert same(second.of(0, 1), was[0][0])


def test_only_the_last_that_all_have_and_the_next_stay() -> None:
    ranks, _ = trained(2, 1)
    copies = Copies()
    for step, complete in ((1, 0), (4, 1), (7, 1)):
        copies.take(step, complete, ranks[0].stage, ranks[0].optimizer, 0)
    assert [s for s in range(10) if copies.at(s) is not None] == [1, 7]
    copies.put(4, 3, HeldLayer({}, {}))
    assert copies.at(4) is None, "what comes too late is not kept"


@pytest.mark.parametrize("too_large", [False, True], ids=["the plan is over", "more than a layer can be"])
def test_copies_that_do_not_come_are_never_said_to_be_there(too_large: bool) -> None:
    ranks, _ = trained(2, 1)
    line = transports(2)
    copies, done = [Copies(), Copies()], threading.Event()
    errors: list[Exception] = []
    threads: list[threading.Thread] = []
    for r in (0, 1) if too_large else (0,):
        own = copies[r].take(1, 0, ranks[r].stage, ranks[r].optimizer, LAYERS[r][0])
        threads += exchange(line, r, 10).start(1, own, copies[r], done.set, errors.append)
    if not too_large:
        line[0].abort("the plan is over")
    for thread in threads:
        thread.join(10.0)
    assert not done.is_set()
    assert [type(x).__name__ for x in errors] == (["FrameError"] * 2 if too_large else [])

"""How long a rank waits for its layers: by what the coordinator expects, for all of them together."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from protos import orchestrator_pb2 as pb
from scheduler.moving import LEAST_DEADLINE_S, TIMES_AS_LONG
from tests.worker.pipelines import Rank, in_threads, make_job, make_plan, make_ranks
from worker import loading
from worker.held_layers import HeldLayer, HeldLayers
from worker.loading import load_from_peers


@pytest.mark.parametrize(("loading_s", "limit_s"), [(0.0, LEAST_DEADLINE_S), (100.0, 100.0 * TIMES_AS_LONG)])
def test_the_deadline_follows_what_is_expected_and_is_of_all_layers(
    loading_s: float, limit_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job()
    plan = make_plan(job, 1, (2, 2))
    ranks = make_ranks(job, plan)
    in_threads(ranks, Rank.run_first)
    held = HeldLayers(1)
    held.keep(ranks[1].stage, ranks[1].optimizer, 0)
    waited_s: list[float] = []
    clock = iter(float(7 * i) for i in range(100))

    def receive(
        _transport: object, _donors: object, step: int, layer: int, _most: int, s: float
    ) -> HeldLayer:
        waited_s.append(s)
        return held.of(layer, step)

    monkeypatch.setattr(loading, "receive_layer", receive)
    monkeypatch.setattr(loading, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    sources = [pb.LayerSource(layer=i, donors=["other"]) for i in range(job.n_layers)]
    take = pb.TakePlan(step=1, sources=sources, loading_s=loading_s)
    mine = ranks[0]
    came = load_from_peers(
        mine.stage, mine.optimizer, 0, take, HeldLayers(1), mine.context.transport, 0, {"other": 1, "me": 0}
    )
    assert came.layers == job.n_layers
    # Two looks at the clock a layer, of 7 s each: what is left is less by 14 s with every layer.
    assert waited_s == [max(0.0, limit_s - 7.0 - 14.0 * i) for i in range(job.n_layers)]

"""What a plan says it moves is what the engine moves, link by link."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from scheduler.engine import replay
from scheduler.traffic import traffic
from tests.scheduler.test_engine import a_plan, equal
from tests.scheduler.test_flows import Counted, steady


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.sampled_from([0, 120]))
def test_the_engine_moves_what_the_plan_says(n_stages: int, n_replicas: int, micro: int, tied: int) -> None:
    plan = a_plan(n_stages, n_replicas, micro)
    d = replace(equal(plan, 1, 2, n_bytes=700, reduce=1200), tied_bytes=tied)
    for run in (plan, replace(plan, local_steps=3)):
        network = Counted(steady(0.1, 100))
        replay(run, d, network)
        said = {(run.device(a), run.device(b)): n for (a, b), n in traffic(run, d).items()}
        assert said == network.sent == network.received

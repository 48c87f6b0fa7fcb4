"""What is emulated and how it is judged; that processes run is for the benchmark to show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from deploy.emulate import Emulation, Outcome, as_long_as, concordance, placements_of, plans_for, table
from deploy.emulate_report import write_emulated
from deploy.local import LinkOptions
from scheduler.engine import replay
from scheduler.job import DataSpec, JobSpec, ModelSpec
from scheduler.plan import Plan
from tests.scheduler.test_engine import a_plan, equal, links

JOB = JobSpec(
    name="j", model=ModelSpec(preset="demo"), data=DataSpec(files=("x",)), sequence_length=128,
    global_batch=32, micro_batch=4, steps=1,
)  # fmt: skip


def an_outcome(predicted_s: float, measured_s: float) -> Outcome:
    return Outcome("t", Plan(1, (("a", "b"),), ((0, 1), (1, 2)), (1,), "1f1b"), predicted_s, measured_s, {})


def test_placements_differ_and_are_the_same_every_time() -> None:
    found = placements_of(["a", "b", "c", "d"], 5)
    assert len(set(found)) == 5
    assert found == placements_of(["a", "b", "c", "d"], 5)
    assert [len(p) for p in found] == [1, 1, 1, 1, 2]
    for placement in found:
        assert sorted(name for row in placement for name in row) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("trace", ["four_cities", "dtfm_worldwide", "synthetic_day"])
def test_plans_are_for_the_workers_that_will_be_started(trace: str) -> None:
    plans = plans_for(Emulation(Path("job.yaml"), (trace,)), JOB, trace)
    assert len(plans) == 5
    for plan in plans:
        assert sorted(plan.device(r)[:2] for r in range(4)) == ["w0", "w1", "w2", "w3"]
        assert plan.samples == 32
        assert plan.partition[-1][1] == JOB.n_layers


def test_the_error_is_of_the_prediction_and_pairs_say_how_placements_rank() -> None:
    found = [an_outcome(1.1, 1.0), an_outcome(2.0, 2.5), an_outcome(3.0, 2.0)]
    assert found[0].error == pytest.approx(0.1)
    assert concordance(found) == pytest.approx(2 / 3)
    shown = table(found)
    assert "+10.0%" in shown
    assert "t: 67% of the pairs of placements in the measured order" in shown
    assert "median error: 20.0%" in shown
    assert "as long as they were" not in shown
    assert "with computations as long as they were: 5.0%" in table([replace(found[0], own=(1.05, 1.0))])


def test_simulated_links_are_scaled_as_the_real_ones() -> None:
    whole = Emulation(Path("j"), ("four_cities",)).trace("four_cities").at(0.0, "Oregon", "London")
    part = Emulation(Path("j"), ("four_cities",), delay_scale=2.0, bandwidth_scale=0.1).trace("four_cities")
    link = part.at(0.0, "Oregon", "London")
    assert whole.one_way_s is not None
    assert whole.bandwidth_Bps is not None
    assert link.one_way_s == pytest.approx(2 * whole.one_way_s)
    assert link.bandwidth_Bps == pytest.approx(whole.bandwidth_Bps / 10)


def test_computations_are_taken_as_long_as_they_were() -> None:
    """A step that was replayed with other computations than planned is explained by them exactly."""
    plan = a_plan(3, 1, 4)
    planned = equal(plan, 1.0, 2.0, n_bytes=300)
    slower = replace(planned, forward_s=(1.5, 1.0, 3.0), backward_s=(2.0, 5.0, 2.5))
    measured = replay(plan, slower, links(3))
    found = as_long_as(measured, replace(planned, shared_cores=(((0, 1, 2), 1),)))
    assert found.forward_s == pytest.approx(slower.forward_s)
    assert found.backward_s == pytest.approx(slower.backward_s)
    assert found.shared_cores == ()
    assert replay(plan, found, links(3)).duration_s == pytest.approx(measured.duration_s)


def test_a_report_lays_the_worst_run_s_step_beside_its_prediction(tmp_path: Path) -> None:
    plan = a_plan(2, 1, 3)
    predicted, measured = (replay(plan, equal(plan, 1.0, b, n_bytes=300), links(2)) for b in (2.0, 3.0))
    good = replace(an_outcome(1.02, 1.0), trace="calm")
    bad = Outcome("wild", plan, predicted.duration_s, measured.duration_s, {}, None, (predicted, measured))
    page = write_emulated(tmp_path, [good, bad]).read_text()
    assert f"One step, predicted: {predicted.duration_s:.3g} s" in page
    assert f"One step, measured: {measured.duration_s:.3g} s" in page
    assert "+2.0%" in page
    assert "wild 2, measured" in page
    assert (tmp_path / "timeline-measured.svg").exists()
    assert "bubble" not in (tmp_path / "time.svg").read_text().lower()


def test_what_only_packets_have_is_refused_for_the_relay() -> None:
    with pytest.raises(ValueError, match="required --backend switch"):
        LinkOptions("four_cities", mtu=9000)
    assert LinkOptions("four_cities", "switch", mtu=9000, seed=2).queue_bytes == 0

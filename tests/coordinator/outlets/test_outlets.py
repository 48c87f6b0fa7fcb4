"""Outlets take a run's events as they come, write what they are for, and cannot end the run."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest

from coordinator.outlets import traces
from coordinator.outlets.scalars import scalars
from coordinator.outlets.seam import OutletMissing, WithOutlets
from coordinator.outlets.tensorboard import TensorBoard
from coordinator.outlets.traces import Traces
from coordinator.outlets.wandb import WeightsAndBiases

from ..dashboard.simulated import MICRO_BATCHES, Simulated

RUN = Simulated(workers=4, stages=2)
EVENTS = [*RUN.beginning(), *(event for n in (1, 2, 3) for event in RUN.step(n))]
EVENTS += [{"event": "eval", "step": 3, "eval_loss": 2.25, "tokens": 64}]


class Kept(list[dict[str, Any]]):
    """A Show that keeps what it is shown."""

    def __call__(self, event: dict[str, Any]) -> None:
        self.append(event)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class Breaks:
    name = "that"

    def __init__(self) -> None:
        self.asked = 0

    def take(self, _: dict[str, Any]) -> None:
        self.asked += 1
        raise OSError("found no space")

    def close(self) -> None:
        raise AssertionError("it was left behind")


def test_an_outlet_that_breaks_is_left_behind_with_a_warning() -> None:
    shown, broken = Kept(), Breaks()
    with WithOutlets(shown, [broken]) as show:
        for event in EVENTS:
            show(event)
    warnings = [event["reason"] for event in shown if event["event"] == "warning"]
    assert warnings == ["that is told nothing more: OSError: found no space"]
    assert [event for event in shown if event["event"] != "warning"] == EVENTS
    assert broken.asked == 1


def test_numbers_that_are_none_are_left_out() -> None:
    assert scalars({"event": "eval", "step": 3, "eval_loss": float("nan")}) == (3, {})
    assert scalars({"event": "left", "name": "w"}) == (0, {})
    step, numbers = scalars(next(event for event in EVENTS if event["event"] == "use"))
    assert step == 1
    assert 0 < numbers["busy_least"] <= numbers["busy_mean"] <= numbers["busy_most"] < 1


def test_tensorboard_reads_the_curves_back(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    outlet = TensorBoard(tmp_path)
    for event in EVENTS:
        outlet.take(event)
    outlet.close()
    [file] = (tmp_path / "simulated-4").iterdir()
    found = {
        (value.tag, event.step): value.tensor.float_val[0]
        for event in EventFileLoader(str(file)).Load()
        for value in event.summary.value
    }
    losses = {event["step"]: event["loss"] for event in EVENTS if event["event"] == "step"}
    assert {step: found["loss", step] for step in losses} == pytest.approx(losses)
    assert found["eval_loss", 3] == 2.25


def test_wandb_is_told_of_every_step_under_the_runs_own_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the package, which the tests do not install: what is called of it."""
    said: list[Any] = []
    made = SimpleNamespace(
        define_metric=lambda name, step_metric: said.append((name, step_metric)),
        log=lambda numbers: said.append((numbers["step"], sorted(set(numbers) - {"step"}))),
        finish=lambda: said.append("finished"),
    )

    def init(**settings: str) -> SimpleNamespace:
        said.append(settings)
        return made

    fake = SimpleNamespace(init=init)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    outlet = WeightsAndBiases("far")
    for event in EVENTS:
        outlet.take(event)
    outlet.close()
    first, over, *logged, last = said
    assert first == {"project": "far", "id": "simulated-4", "name": "simulated-4", "resume": "allow"}
    assert over == ("*", "step"), "a step may come twice: of a run that took up an earlier checkpoint"
    assert [step for step, _ in logged] == [1, 1, 2, 3, 3]
    assert logged[-1] == (3, ["eval_loss"])
    assert last == "finished"


def test_an_outlet_whose_package_is_not_there_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(OutletMissing, match="--wandb: "):
        WeightsAndBiases("far")


def test_a_recorded_step_is_a_trace_of_workers_and_what_they_did(tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    kept, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    RUN.write_timeline(tmp_path)
    outlet = Traces(tmp_path, provider, lambda: 1000.0)
    for event in EVENTS:
        outlet.take(event)
    spans = kept.get_finished_spans()
    [step] = [span for span in spans if span.parent is None]
    workers = {span.context.span_id: span for span in spans if span.parent == step.context}
    assert step.end_time == pytest.approx(1000 * 10**9, abs=10)
    assert step.attributes == {"isthmus.run": "simulated-4", "isthmus.step": 1}
    assert sorted(span.name for span in workers.values()) == ["w000", "w001", "w002", "w003"]
    inner = [span for span in spans if span.parent is not None and span.parent.span_id in workers]
    assert len(inner) == 4 * (2 * MICRO_BATCHES + 2)
    assert len(spans) == 1 + 4 + len(inner)
    first = min(
        (span for span in inner if workers[span.parent.span_id].name == "w001"), key=lambda x: x.start_time
    )
    assert (first.name, first.attributes["isthmus.micro_batch"]) == ("forward", 0)
    assert first.start_time - step.start_time == pytest.approx(0.06e9, abs=10)
    outlet.close()


def test_a_collector_that_is_not_there_does_not_hold_the_run_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("opentelemetry.sdk")
    monkeypatch.setattr(traces, "CLOSE_S", 0.01)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    answers = threading.Event()
    provider: Any = SimpleNamespace(get_tracer=lambda _: None, shutdown=answers.wait)
    told = Kept()
    with WithOutlets(told, [Traces(tmp_path, provider, lambda: 0.0)]):
        pass
    answers.set()
    [warning] = told
    assert warning["event"] == "warning"
    assert "found no collector" in warning["reason"]
    assert "http://127.0.0.1:9" in warning["reason"]

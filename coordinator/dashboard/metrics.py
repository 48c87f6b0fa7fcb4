"""The board as OpenMetrics text, for Prometheus. Names and units are documented in docs/metrics.md."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from .board import Board

_GAUGES = (
    ("isthmus_loss", "Training loss of the last step, nats a token.", "loss"),
    ("isthmus_grad_norm", "Norm of the last step's gradient before clipping.", "grad_norm"),
    ("isthmus_tokens_per_second", "Tokens trained on a second, over the last steps.", "tokens_per_s"),
    ("isthmus_step_seconds", "Seconds of the last step.", "step_s"),
    ("isthmus_predicted_step_seconds", "Seconds of a step that the plan predicts.", "predicted_step_s"),
)


class _Collector(Collector):
    def __init__(self, board: Board) -> None:
        self._board = board

    def collect(self) -> Iterator[Metric]:
        board = self._board
        for name, text, series in _GAUGES:
            value = board.last(series)
            if value is not None:
                yield GaugeMetricFamily(name, text, value)
        if board.eval_loss is not None:
            yield GaugeMetricFamily("isthmus_held_out_loss", "Of the last evaluation.", board.eval_loss)
        yield GaugeMetricFamily("isthmus_steps", "Steps committed.", board.step)
        yield GaugeMetricFamily("isthmus_steps_wanted", "Steps that the job asks for.", board.steps)
        yield CounterMetricFamily(
            "isthmus_tokens", "Tokens trained on since the coordinator began.", board.tokens
        )
        yield CounterMetricFamily(
            "isthmus_plans", "Plans made since the coordinator began.", len(board.plans)
        )
        yield CounterMetricFamily(
            "isthmus_spot_checks", "Spot checks of committed and other steps.", board.checks
        )
        yield CounterMetricFamily(
            "isthmus_spot_check_disagreements", "Those that found work that was off.", board.disagreements
        )
        members = GaugeMetricFamily(
            "isthmus_workers", "Workers by region and state.", labels=["region", "state"]
        )
        counts: dict[tuple[str, str], int] = {}
        for worker in board.workers.values():
            key = worker.region, "gone" if worker.gone else "member"
            counts[key] = counts.get(key, 0) + 1
        for key, n in sorted(counts.items()):
            members.add_metric(list(key), n)
        yield members
        yield from _by_worker(board)
        sent = GaugeMetricFamily(
            "isthmus_link_bytes",
            "Bytes on the wire in the last recorded step.",
            labels=["from", "to", "kind", "codec"],
        )
        raw = GaugeMetricFamily(
            "isthmus_link_raw_bytes", "The same before the codec.", labels=["from", "to", "kind", "codec"]
        )
        for row in board.traffic():
            labels = [row["from"], row["to"], row["kind"], row["codec"]]
            sent.add_metric(labels, row["sent_bytes"])
            raw.add_metric(labels, row["raw_bytes"])
        yield sent
        yield raw


def _by_worker(board: Board) -> Iterator[Metric]:
    labels = ["worker", "region"]
    busy = GaugeMetricFamily(
        "isthmus_worker_busy_ratio", "Share of the last recorded step spent computing.", labels=labels
    )
    used = GaugeMetricFamily("isthmus_worker_memory_used_bytes", "As the worker last said.", labels=labels)
    for worker in board.workers.values():
        if not worker.gone and worker.busy is not None:
            busy.add_metric([worker.name, worker.region], worker.busy)
        if not worker.gone and worker.memory_used_bytes is not None:
            used.add_metric([worker.name, worker.region], worker.memory_used_bytes)
    yield busy
    yield used


def exposition(board: Board) -> tuple[bytes, str]:
    """The text and its content type."""
    registry = CollectorRegistry()
    registry.register(_Collector(board))
    text: bytes = generate_latest(registry)  # type: ignore[no-untyped-call]  # the package types it not
    return text, CONTENT_TYPE_LATEST

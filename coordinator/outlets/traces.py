"""Recorded steps as OpenTelemetry traces: a step, its workers, and what each did when.

Where they go is OpenTelemetry's own setting (OTEL_EXPORTER_OTLP_ENDPOINT). Spans of a step count from its
start on each worker's own clock; the trace lays all starts at the moment that the step was recorded, less
its length.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scheduler.timeline import Span

from ..timelines import TIMELINE_FILE, timeline_from_json
from .seam import Event, OutletMissing

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_NS = 1_000_000_000
CLOSE_S = 3.0
"""What is left may take so long to be sent: the end of a run does not wait for a collector that is not there,
which would be 30 s."""
MAX_QUEUED = 1 << 17
"""Spans that wait to be sent: more than a step of 500 workers has; the package's 2,048 would lose most."""


def provider() -> TracerProvider:
    """One that sends spans by OTLP over HTTP. Raises OutletMissing."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise OutletMissing(f"--otel: {error}; pip install 'isthmus[otel]'") from error
    # `Traces.close` shuts it down; at the interpreter's exit it would be waited for once more.
    made = TracerProvider(resource=Resource.create({"service.name": "isthmus"}), shutdown_on_exit=False)
    made.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), max_queue_size=MAX_QUEUED))
    return made


class NotSent(Exception):
    """Traces that nobody took: says where they were to go."""


class Traces:
    """One trace a recorded step, from the spans that the state directory keeps of it."""

    name = "OpenTelemetry"

    def __init__(self, state_dir: Path, provider: TracerProvider, now_s: Callable[[], float]) -> None:
        """`now_s`: seconds since 1970."""
        self._file = state_dir / TIMELINE_FILE
        self._provider = provider
        self._tracer = provider.get_tracer("isthmus")
        self._now_s = now_s
        self._run = ""

    def take(self, event: Event) -> None:
        self._run = str(event.get("run", self._run))
        if event["event"] == "use":  # told when all ranks' spans of the step are in the file
            body = json.loads(self._file.read_text(encoding="utf-8"))
            self._trace(body["devices"], body["measured"][-1])

    def _trace(self, devices: list[str], measured: dict[str, Any]) -> None:
        from opentelemetry.trace import set_span_in_context

        timeline = timeline_from_json(measured)
        start_ns = int((self._now_s() - timeline.duration_s) * _NS)

        def at(seconds: float) -> int:
            return start_ns + int(seconds * _NS)

        number = {"isthmus.run": self._run, "isthmus.step": measured["step"]}
        step = self._tracer.start_span("step", start_time=start_ns, attributes=number)
        for rank, device in enumerate(devices):
            spans = [s for s in timeline.spans if s.rank == rank]
            worker = self._tracer.start_span(
                device, set_span_in_context(step), start_time=start_ns,
                attributes={**number, "isthmus.worker": device, "isthmus.rank": rank},
            )  # fmt: skip
            inside = set_span_in_context(worker)
            for s in spans:
                own = self._tracer.start_span(
                    s.kind, inside, start_time=at(s.start_s), attributes=_told(s, devices)
                )
                own.end(at(s.end_s))
            worker.end(at(max((s.end_s for s in spans), default=0.0)))
        step.end(at(timeline.duration_s))

    def close(self) -> None:
        """Send what is left. Raises NotSent if nobody takes it within CLOSE_S."""
        sending = threading.Thread(target=self._provider.shutdown, name="last-traces", daemon=True)
        sending.start()
        sending.join(CLOSE_S)
        if sending.is_alive():
            where = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318")
            raise NotSent(
                f"found no collector that took the last traces within {CLOSE_S:g} s; what was left is lost. "
                f"Check OTEL_EXPORTER_OTLP_ENDPOINT ({where})"
            )


def _told(span: Span, devices: list[str]) -> dict[str, str | int]:
    """What is known of a span beyond its time."""
    found: dict[str, str | int] = {}
    if span.mb >= 0:
        found["isthmus.micro_batch"] = span.mb
    if 0 <= span.peer < len(devices):
        found["isthmus.peer"] = devices[span.peer]
    if span.n_bytes:
        found["isthmus.bytes"] = span.n_bytes
    return found

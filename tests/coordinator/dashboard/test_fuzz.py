"""Whatever is asked of /api, the answer is one that its description promises: asked by schemathesis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

pytest.importorskip("starlette")
schemathesis = pytest.importorskip("schemathesis")

from coordinator.dashboard.board import Board  # noqa: E402 (after the skips)
from coordinator.dashboard.openapi import DOCUMENT  # noqa: E402
from coordinator.dashboard.runs import Below  # noqa: E402
from coordinator.dashboard.server import Dashboard  # noqa: E402

from .recorded import record  # noqa: E402
from .simulated import Simulated  # noqa: E402

GOOD, BAD = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
ASKED = [(path, GOOD) for path in DOCUMENT["paths"]]
ASKED += [(path, BAD) for path, methods in DOCUMENT["paths"].items() if methods["get"]["parameters"]]
"""What takes no parameter can be asked in no wrong way."""


@pytest.mark.parametrize(("path", "mode"), ASKED)
def test_the_api_answers_as_it_says(path: str, mode: Any, tmp_path: Path) -> None:
    run = Simulated(workers=8, stages=4)
    board = Board(job="fuzzed")
    for event in [*run.beginning(), *run.step(1), *run.lose(3), *run.step(2)]:
        board.take(event, 0.0)
    run.write_timeline(tmp_path)
    for name in ("a", "b"):
        record(tmp_path / "runs" / name, name, 4)
    shown = Dashboard(board, tmp_path, below=Below(tmp_path / "runs"))
    schema = schemathesis.openapi.from_asgi("/api/openapi", shown.app)
    operation = schema[path]["GET"]

    @settings(
        max_examples=10, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        case.call_and_validate()

    ask()

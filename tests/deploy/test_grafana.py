"""The Grafana dashboard asks for metrics that there are; the page on metrics names all, and no others."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("prometheus_client")

from prometheus_client.openmetrics.parser import text_string_to_metric_families

from coordinator.dashboard.board import Board
from coordinator.dashboard.metrics import exposition
from tests.coordinator.dashboard.simulated import Simulated

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "isthmus.json").read_text())
NAME = re.compile(r"\bisthmus_[a-z_]+")


def exposed() -> dict[str, set[str]]:
    """Every metric of a run in which everything was told, with its labels."""
    run, board = Simulated(workers=8, stages=4), Board(job="all")
    told: list[dict[str, Any]] = [*run.beginning(), *run.step(1), *run.lose(3), *run.step(11)]
    for event in [*told, {"event": "eval", "step": 11, "eval_loss": 2.0}]:
        board.take(event, 0.0)
    text, _ = exposition(board)
    families = text_string_to_metric_families(text.decode())  # type: ignore[no-untyped-call]
    return {sample.name: set(sample.labels) for family in families for sample in family.samples}


def expressions() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def test_the_page_on_metrics_names_those_there_are() -> None:
    rows = [x for x in (ROOT / "docs" / "metrics.md").read_text().splitlines() if x.startswith("| `isthmus_")]
    assert {name for row in rows for name in NAME.findall(row.split("|")[1])} == exposed().keys()


def test_every_panel_asks_for_metrics_and_labels_that_there_are_and_none_is_left_out() -> None:
    there = exposed()
    assert {name for text in expressions() for name in NAME.findall(text)} == there.keys()
    for text in expressions():
        labels = {"job", *(label for name in NAME.findall(text) for label in there[name])}
        asked = re.findall(r"(\w+)=~?\"", text)
        asked += [x.strip() for by in re.findall(r" by \(([^)]*)\)", text) for x in by.split(",")]
        assert set(asked) <= labels, text
    for variable in DASHBOARD["templating"]["list"]:
        assert set(NAME.findall(json.dumps(variable))) <= there.keys()


def test_panels_do_not_cover_each_other_and_are_told_apart() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for at in (panel["gridPos"] for panel in panels)
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24

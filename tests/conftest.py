"""How the suite is spread over cores: tests that start processes one after the other, the rest beside them.

Real coordinators, workers and Ray clusters measure their cores and links; two such tests at a time would
measure each other. They take longest together, so they come first. A module outside tests/integration that
starts some says `pytestmark = pytest.mark.xdist_group("processes")`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

_INTEGRATION = Path(__file__).parent / "integration"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(_INTEGRATION):
            item.add_marker(pytest.mark.xdist_group("processes"))
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)

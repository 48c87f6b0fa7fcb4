"""How Triton runs, and the order of the suite.

Triton decides when it is imported whether it interprets, and PyTorch's flop counter imports it: so it is said
here, before any test's imports.

Tests that start processes come first, for they take longest and two cores share them. `make unit` hands out
one test at a time to each core (`--dist loadgroup` with no groups named: pytest-xdist 3.8 does not see them
under pytest 9.2), so the short tests fill the gaps at the end.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")

_INTEGRATION = Path(__file__).parent / "integration"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.path.is_relative_to(_INTEGRATION))

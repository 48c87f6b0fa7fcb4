"""The programs of `docs/examples`, as modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def load_example(name: str) -> Any:
    """Run `docs/examples/NAME.py` and return it as a module; what is below its `__main__` is not run."""
    return load(EXAMPLES / f"{name}.py")


def load(path: Path) -> Any:
    """The Python file at `path`, run, as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their own module up
    spec.loader.exec_module(module)
    return module

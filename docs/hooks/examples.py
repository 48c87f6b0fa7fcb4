"""Runs the examples that start no process, and puts what they print below them.

In a page, a line `<!-- output: NAME.py -->` stands for the output of `docs/examples/NAME.py`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

MARK = re.compile(r"<!-- output: (\w+\.py) -->")


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Called by mkdocs for each page."""
    del page
    root = Path(config.config_file_path).parent
    return MARK.sub(lambda found: f"```text\n{output(root, found[1])}\n```", markdown)


def output(root: Path, name: str) -> str:
    """What the example prints. Raises CalledProcessError if it fails."""
    argv = [sys.executable, str(Path("docs") / "examples" / name)]
    done = subprocess.run(argv, cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()

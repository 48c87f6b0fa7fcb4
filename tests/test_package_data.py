"""What is no Python and lies in a package is named in pyproject.toml, or an installed Isthmus lacks it."""

from __future__ import annotations

import tomllib
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_file_of_a_package_is_shipped() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["*"]
    packages = [p.rstrip("*") for p in project["tool"]["setuptools"]["packages"]["find"]["include"]]
    assert "sim" in packages
    lacking = [
        str(f.relative_to(ROOT))
        for package in packages
        for f in (ROOT / package).rglob("*")
        if f.is_file() and "__pycache__" not in f.parts and f.suffix not in (".py", ".pyi")
        if not any(fnmatch(f.name, pattern) for pattern in patterns)
    ]
    assert lacking == []

"""What the documents say of the code is what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scheduler.exit_codes import EXITS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("code", sorted(EXITS), ids=lambda c: c.name)
def test_every_exit_code_is_documented_in_its_own_words(code: int) -> None:
    e = next(x for x in EXITS.values() if x.code == code)
    assert f"| {int(e.code)} | {e.code.name} | {e.meaning} | {e.remedy} |" in README


@pytest.mark.parametrize("page", ["README.md", "DESIGN.md", "CONTRIBUTING.md"])
def test_links_and_named_files_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    named = re.findall(r"`([a-z]+/[a-z_0-9/]+\.(?:py|proto))`", text)
    missing = sorted({p for p in [*links, *named] if not (ROOT / p).exists()})
    assert not missing, f"{page} names files that do not exist: {', '.join(missing)}"

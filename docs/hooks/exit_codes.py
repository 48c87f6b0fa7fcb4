"""The table of exit codes, written from `scheduler/exit_codes.py` whenever the site is built."""

from __future__ import annotations

from typing import Any

from scheduler.exit_codes import EXITS

PAGE = "reference/exit-codes.md"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by mkdocs for each page."""
    return f"{markdown}\n{exits_table()}" if page.file.src_uri == PAGE else markdown


def exits_table() -> str:
    """Every code with its meaning and remedy, as Markdown."""
    rows = [f"| {int(e.code)} | {e.code.name} | {e.meaning} | {e.remedy} |" for e in EXITS.values()]
    return "\n".join(["| code | name | meaning | what to do |", "|---|---|---|---|", *rows])

"""The reference of the control plane, written from `protos/orchestrator.proto` and its comments."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

PAGE = "reference/protocol.md"
PROTO = Path("protos/orchestrator.proto")


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Called by mkdocs for each page."""
    if page.file.src_uri != PAGE:
        return markdown
    proto = Path(config.config_file_path).parent / PROTO
    return f"{markdown}\n{protocol_page(proto.read_text(encoding='utf-8'))}"


def protocol_page(text: str) -> str:
    """The services and messages of `text`, each below the comment that stands above it, as Markdown."""
    out: list[str] = []
    said: list[str] = []
    lines = iter(text.splitlines())
    for line in lines:
        if heading := re.match(r"// ---- (.*)", line):
            out.append(f"\n## {heading[1].strip().capitalize()}\n")
        elif line.startswith("//"):
            said.append(line.removeprefix("//").strip())
        elif begun := re.match(r"(service|message) (\w+)", line):
            body = [line]
            while body[-1].count("{") > body[-1].count("}") or (
                len(body) > 1 and not body[-1].startswith("}")
            ):
                body.append(next(lines))
            out += [f"\n### {begun[2]}\n", " ".join(said), "\n```proto", *body, "```"]
            said = []
        elif not line.strip():
            said = []
    return "\n".join(out)

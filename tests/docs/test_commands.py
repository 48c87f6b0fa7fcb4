"""Every command line in the README and in the documentation is one that its command would take."""

from __future__ import annotations

from pathlib import Path

import pytest

from scheduler.job import parse_job
from tests.docs.commands import complaint, fences, in_blocks, in_words

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "SECURITY.md", "CONTRIBUTING.md", "jobs/README.md")),
        *(ROOT / "docs").rglob("*.md"),
    ]
)
pages = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))


@pages
def test_a_pages_commands_are_taken(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    wrong = [f"{line}: {why}" for line in in_blocks(text) if (why := complaint(line))]
    wrong += [f"{line}: {why}" for line in in_words(text) if (why := complaint(line, whole=False))]
    assert not wrong, "\n".join(wrong)


@pages
def test_a_pages_jobs_are_valid(page: Path) -> None:
    for language, content in fences(page.read_text(encoding="utf-8")):
        if language == "yaml" and content.startswith("name:") and "--8<--" not in content:
            parse_job(content, page.name)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("coordinator start job.yaml --min-workers 3", ""),
        ("coordinator start --min-workers 3", "needs job_file"),
        ("coordinator begin job.yaml", "knows no 'begin'"),
        ("coordinator start job.yaml --min-worker 3", "No such option"),
        ("coordinator start job.yaml --min-workers", "requires an argument"),
        ("coordinator status here", "takes no here"),
        ("deploy ray launch job.yaml … --gpu 1", "knows no --gpu"),
        ("sim traces show four_cities --plot x.svg", ""),
    ],
)
def test_a_wrong_line_is_noticed(line: str, said: str) -> None:
    found = complaint(line)
    assert said in found if said else not found


def test_the_pages_speak_of_all_programs() -> None:
    spoken = {line.split()[0] for page in PAGES for line in in_blocks(page.read_text(encoding="utf-8"))}
    assert spoken == {"coordinator", "worker", "sim", "deploy"}

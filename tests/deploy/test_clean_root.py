"""The container file is understood by the script that does its steps without a container engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from .clean_root import DOCKERFILE, Root, follow, instructions


class Told(Root):
    """Copies, and keeps what it was to run."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, {"EXTRAS": "worker"})
        self.ran: list[tuple[str, str, str]] = []

    def run(self, command: str) -> None:
        self.ran.append((self.user, self.directory, command))
        self.there = {x.name for x in self.at(".").iterdir()}


def test_the_container_files_steps_are_followed(tmp_path: Path) -> None:
    root = Told(tmp_path)
    follow(root, DOCKERFILE.read_text())
    (user, directory, installs), (_, _, adds) = root.ran
    assert (user, directory) == ("0", "/src")
    assert installs.count("pip install") == 2
    assert '".[$EXTRAS]"' in installs
    assert "useradd" in adds
    assert root.arguments["EXTRAS"] == "worker", "a build argument is stronger than the file's"
    assert (root.user, root.directory) == ("10001", "/var/lib/isthmus")
    assert root.environment["PATH"].startswith("/opt/isthmus/bin:/usr/local/bin")
    assert not (tmp_path / "src").exists(), "the second stage has only what it copies"


def test_what_is_copied_is_there_when_it_is_installed(tmp_path: Path) -> None:
    root = Told(tmp_path)
    first, _, _ = DOCKERFILE.read_text().rpartition("FROM ")
    follow(root, first)
    assert {"pyproject.toml", "constraints.txt", "compression", "coordinator", "deploy"} <= root.there
    assert (tmp_path / "src" / "coordinator" / "dashboard" / "static" / "runs.html").exists()


def test_an_instruction_that_is_not_known_is_refused(tmp_path: Path) -> None:
    assert list(instructions("# no\nRUN a \\\n    && b\n\nUSER 7\n")) == [("RUN", "a && b"), ("USER", "7")]
    with pytest.raises(ValueError, match="ONBUILD"):
        follow(Told(tmp_path), "ONBUILD RUN x\n")
    with pytest.raises(ValueError, match="same place in both stages"):
        follow(Told(tmp_path), "COPY --from=build /a /b\n")

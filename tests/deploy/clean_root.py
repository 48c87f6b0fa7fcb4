"""The container file's steps in a clean root, where no container engine is at hand.

    python -m tests.deploy.clean_root ROOT [--arg NAME=VALUE] [--bring PATH]

Wants root, and debootstrap. Makes a Debian of the image's release with its Python in ROOT (unless it is
there), then does what `deploy/containers/Dockerfile` says, in its order, and ends by starting each program as
the image's user. One root serves both stages: what the second does not copy is removed in between. `--arg` is
docker's --build-arg; `--bring` copies a file or directory of this machine to the same place first, such as
pip's configuration.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
DOCKERFILE = REPOSITORY / "deploy" / "containers" / "Dockerfile"
IMAGE = re.compile(r"python:3\.11-slim-(\w+)")
PACKAGES = "python3,python3-venv,ca-certificates"
TRIED = (
    "worker --help",
    "coordinator exit-codes",
    "sim traces list",
    "deploy --help",
    "python -c 'import torch, coordinator.dashboard.server; print(torch.__version__)'",
)


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """(instruction, the rest) of a container file, continued lines joined."""
    joined = re.sub(r"\s*\\\n\s*", " ", re.sub(r"(?m)^#.*\n", "", text))
    for line in filter(None, map(str.strip, joined.splitlines())):
        word, _, rest = line.partition(" ")
        yield word, rest.strip()


class Root:
    """A directory that steps are done in as the file has them so far."""

    def __init__(self, path: Path, arguments: dict[str, str]) -> None:
        self.path = path
        self.arguments = arguments
        self.environment = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/root"}
        self.user, self.directory = "0", "/"

    def run(self, command: str) -> None:
        """As RUN does. Raises CalledProcessError."""
        print(f"--> {command}", flush=True)
        known = {**self.arguments, **self.environment}
        words = ["env", "-i", *(f"{k}={v}" for k, v in known.items()), "bash", "-eo", "pipefail", "-c"]
        inside = f"cd {shlex.quote(self.directory)} && {command}"
        subprocess.run(["chroot", f"--userspec={self.user}:{self.user}", str(self.path), *words, inside],
                       check=True)  # fmt: skip

    def at(self, place: str) -> Path:
        return self.path / (Path(self.directory) / place).as_posix().lstrip("/")

    def copy(self, sources: list[str], target: str) -> None:
        """As COPY does, from the checkout: files into a directory, or a directory as another."""
        for source in sources:
            here, to = REPOSITORY / source, self.at(target)
            if here.is_dir():
                shutil.copytree(here, to, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                to.mkdir(parents=True, exist_ok=True)
                shutil.copy2(here, to)

    def substituted(self, text: str) -> str:
        known = {**self.arguments, **self.environment}
        return re.sub(r"\$\{?(\w+)\}?", lambda m: known.get(m[1], ""), text)


def follow(root: Root, text: str) -> None:
    """Do what the file says. Raises CalledProcessError; ValueError for an instruction that is not known."""
    stages = 0
    for word, rest in instructions(text):
        match word:
            case "ARG":
                name, _, default = rest.partition("=")
                root.arguments.setdefault(name, default)
            case "FROM":
                if not IMAGE.match(root.substituted(rest)):
                    raise ValueError(f"FROM: found {rest!r}, required an image of Python 3.11")
                stages += 1
                if stages > 1:
                    shutil.rmtree(root.at("."))
                root.directory = "/"
            case "WORKDIR":
                root.directory = rest
                root.at(".").mkdir(parents=True, exist_ok=True)
            case "COPY":
                *sources, target = rest.split()
                if sources[0] == "--from=build":
                    if sources[1] != target:
                        raise ValueError(f"COPY: found {rest!r}, required the same place in both stages")
                else:
                    root.copy(sources, target)
            case "RUN":
                root.run(rest)
            case "ENV":
                for pair in shlex.split(root.substituted(rest)):
                    name, _, value = pair.partition("=")
                    root.environment[name] = value
            case "USER":
                root.user = rest
            case "SHELL" | "VOLUME" | "EXPOSE" | "HEALTHCHECK" | "STOPSIGNAL" | "CMD":
                pass
            case _:
                raise ValueError(f"found the instruction {word}, required one that is known here")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--arg", action="append", default=[])
    parser.add_argument("--bring", action="append", type=Path, default=[])
    options = parser.parse_args()
    text = DOCKERFILE.read_text(encoding="utf-8")
    release = re.findall(r"slim-(\w+)", text)[0]
    if not (options.root / "bin").exists():
        make = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", release, str(options.root)]
        subprocess.run(make, check=True)
    if not (python := options.root / "usr/local/bin/python").exists():
        python.symlink_to("/usr/bin/python3")
    for path in options.bring:
        to = options.root / str(path).lstrip("/")
        if path.is_dir():
            shutil.copytree(path, to, dirs_exist_ok=True)
        else:
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, to)
    root = Root(options.root, dict(pair.partition("=")[::2] for pair in options.arg))
    follow(root, text)
    for command in TRIED:
        root.run(command)
    print("every step was done, and each program starts")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`sim switch` for benchmarks: started by its command, ended whatever happens."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from deploy.processes import Child, command
from sim.namespaces import Namespaces, SwitchUnavailable

START_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Space:
    """A namespace: its address, and the words before a command that runs in it."""

    address: str
    enter: tuple[str, ...]


def why_not() -> str:
    """Why this machine cannot switch packets; '' if it can. A benchmark that needs it then misses no goal."""
    try:
        Namespaces(1).close()
    except SwitchUnavailable as reason:
        return str(reason)
    return ""


@contextmanager
def switched(trace: str, places: Sequence[str], *options: str) -> Iterator[list[Space]]:
    """Namespaces at `places` of `trace`, in that order. Raises ProcessFailed with the command's words."""
    with TemporaryDirectory(prefix="isthmus-switch-") as folder:
        map_file = Path(folder) / "map.json"
        argv = command("sim", "switch", "--trace", trace, "--map-file", str(map_file), "--json", *options)
        for i, place in enumerate(places):
            argv += ["--node", f"n{i}={place}"]
        child = Child("switch", argv, Path(folder) / "switch.log")
        try:
            child.wait_for("ready", START_TIMEOUT_S)
            found = json.loads(map_file.read_text())
            yield [Space(s["address"], tuple(s["enter"])) for s in found.values()]
        finally:
            child.stop()

"""A run as actors of a Ray cluster that is there: launched, followed, looked at, ended.

One placement group holds a bundle for the coordinator and one for each worker, spread over the nodes;
a worker that is to be in a region asks for the node resource `region:NAME`. Isthmus must be installed on
every node; Ray brings no code there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util import placement_group, remove_placement_group
from ray.util.placement_group import get_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from rich.console import Console

from coordinator.progress import Bar, JsonLines, Show
from deploy.on_ray.actors import NAMESPACE, CoordinatorActor, WorkerActor, coordinator_name
from scheduler.exit_codes import ExitCode
from sim.spread import why_nobody_answers

READY_TIMEOUT_S = 120.0
END_TIMEOUT_S = 120.0
_WORKERS = re.compile(r"([0-9]{1,5})(?:@([A-Za-z0-9._-]{1,60}))?")


class LaunchFailed(Exception):
    """The cluster does not do what was asked; `code` is the exit code."""

    def __init__(self, reason: str, code: ExitCode = ExitCode.USAGE) -> None:
        super().__init__(reason)
        self.code = int(code)


@dataclass(frozen=True, slots=True)
class Launch:
    """What `deploy ray launch` was asked for. `regions`: one entry a worker, '' anywhere."""

    job: Path
    regions: tuple[str, ...]
    name: str
    gpus: float
    cpus: float
    state_dir: Path
    data_dir: Path
    streams: int


def parse_workers(texts: Sequence[str]) -> tuple[str, ...]:
    """`3`, `2@oregon` as the region of each worker. Raises LaunchFailed."""
    regions: list[str] = []
    for text in texts:
        match = _WORKERS.fullmatch(text)
        if match is None or int(match[1]) < 1:
            raise LaunchFailed(f"--workers: found {text!r}, required N or N@REGION with N of 1 or more")
        regions += [match[2] or ""] * int(match[1])
    return tuple(regions)


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Connected to the cluster; an earlier connection of this process is used and left as it is."""
    if ray.is_initialized():
        yield
        return
    if why := why_nobody_answers(address):
        raise LaunchFailed(f"--address {address}: {why}", ExitCode.UNREACHABLE)
    try:
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="WARNING")
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = f"--address {address}: found no Ray cluster ({error}); start one, or name another"
        raise LaunchFailed(reason, ExitCode.UNREACHABLE) from error
    try:
        yield
    finally:
        ray.shutdown()


def run(wanted: Launch, address: str, *, detach: bool, as_json: bool) -> int:
    """Launch the run and follow it to its end (with `detach`: until it is placed); the exit code."""
    with connected(address):
        coordinator = _place(wanted)
        if detach:
            return int(ExitCode.OK)
        show: Show = JsonLines() if as_json else Bar(Console(soft_wrap=True))
        try:
            with show:
                code = _follow(coordinator, show)
        except KeyboardInterrupt:
            _end(wanted.name, now=False)
            return int(ExitCode.INTERRUPTED)
        _end(wanted.name, now=False)
        return code


def _place(wanted: Launch) -> Any:
    """The placement group and its actors; the coordinator's handle."""
    if _actors(wanted.name):
        raise LaunchFailed(
            f"found a run called {wanted.name!r} on the cluster; end it by `deploy ray down --name "
            f"{wanted.name}`, or give another --name"
        )
    bundles: list[dict[str, float]] = [{"CPU": 0.5}]
    for region in wanted.regions:
        bundle = {"CPU": wanted.cpus} | ({"GPU": wanted.gpus} if wanted.gpus else {})
        bundles.append(bundle | ({f"region:{region}": 1.0} if region else {}))
    group = placement_group(bundles, strategy="SPREAD", name=wanted.name, lifetime="detached")
    try:
        ray.get(group.ready(), timeout=READY_TIMEOUT_S)
    except ray.exceptions.GetTimeoutError:
        remove_placement_group(group)
        there = {k: v for k, v in ray.cluster_resources().items() if not k.startswith("node:")}
        raise LaunchFailed(
            f"found {there} on the cluster, required {bundles} at once; add nodes, or ask for fewer workers",
            ExitCode.NO_PLAN,
        ) from None
    options = {
        "namespace": NAMESPACE, "lifetime": "detached", "max_restarts": -1, "max_concurrency": 8,
    }  # fmt: skip
    coordinator = (
        ray.remote(CoordinatorActor)
        .options(
            **options, name=coordinator_name(wanted.name), num_cpus=0.5,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, 0),
        )
        .remote(
            wanted.name, wanted.job.read_text(encoding="utf-8"), len(wanted.regions),
            str(wanted.state_dir.absolute()),
        )
    )  # fmt: skip
    for i, region in enumerate(wanted.regions):
        name = f"{wanted.name}-w{i}" + (f"-{region}" if region else "")
        words = {"--streams": str(wanted.streams), "--data-dir": str(wanted.data_dir.absolute())}
        words |= {"--region": region} if region else {}
        (
            ray.remote(WorkerActor)
            .options(
                **options, name=name, num_cpus=wanted.cpus, num_gpus=wanted.gpus,
                resources={f"region:{region}": 1.0} if region else {},
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, i + 1),
            )
            .remote(wanted.name, name, words, wanted.gpus)
        )  # fmt: skip
    return coordinator


def _follow(coordinator: Any, show: Show) -> int:
    """Show what the coordinator says until it has ended; its exit code. Its actor may be restarted."""
    after = 0
    while True:
        try:
            new, code = ray.get(coordinator.events.remote(after, 10.0))
        except ray.exceptions.RayActorError as error:
            show(
                {"event": "warning", "reason": f"the coordinator's actor ended and is started again: {error}"}
            )
            after = 0
            ray.get(coordinator.door.remote(300.0))
            continue
        for after, event in new:  # noqa: B007 (the last number is where the next question begins)
            show(event)
        if code is not None:
            return int(code)


def _actors(name: str) -> dict[str, Any]:
    """The run's live actors by name."""
    found = {}
    for entry in ray.util.list_named_actors(all_namespaces=True):
        own = entry["name"] == coordinator_name(name) or entry["name"].startswith(f"{name}-w")
        if entry["namespace"] == NAMESPACE and own:
            found[entry["name"]] = ray.get_actor(entry["name"], namespace=NAMESPACE)
    return found


def status_of(name: str, address: str) -> dict[str, Any]:
    """The run's actors and what the coordinator last said. Raises LaunchFailed if there is no such run."""
    with connected(address):
        actors = _required(name)
        states = {a["Name"]: a for a in _states()}
        rows: list[dict[str, Any]] = []
        last: dict[str, Any] = {}
        for actor, handle in sorted(actors.items()):
            try:
                report = ray.get(handle.report.remote(), timeout=10.0)
            except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
                report = {"starts": 0, "code": None, "reason": str(error)}
            last = report.pop("last", last)
            state = states.get(actor, {})
            place = {"state": state.get("State", "UNKNOWN"), "node": state.get("Node", "")}
            rows.append({"name": actor, **place, **report})
        return {"run": name, "actors": rows, "last": last}


def _states() -> list[dict[str, Any]]:
    """Name, state and node of every actor, as the cluster's own table has them."""
    table = ray._private.state.actors()
    return list(table.values()) if isinstance(table, dict) else []


def end(name: str, address: str, *, now: bool) -> int:
    """End the run and give back what it held; how many actors there were. Raises LaunchFailed."""
    with connected(address):
        _required(name)
        return _end(name, now=now)


def _required(name: str) -> dict[str, Any]:
    actors = _actors(name)
    if not actors:
        raise LaunchFailed(f"found no run called {name!r} on the cluster, required the --name it was given")
    return actors


def _end(name: str, *, now: bool) -> int:
    actors = _actors(name)
    coordinator = actors.pop(coordinator_name(name), None)
    if coordinator is not None:
        if not now:
            _quietly(coordinator.drain.remote(END_TIMEOUT_S), END_TIMEOUT_S + 10.0)
        ray.kill(coordinator)
    if not now:
        for reference in [handle.end.remote(END_TIMEOUT_S) for handle in actors.values()]:
            _quietly(reference, END_TIMEOUT_S + 10.0)
    for handle in actors.values():
        ray.kill(handle)
    remove_placement_group(get_placement_group(name))
    return len(actors) + (coordinator is not None)


def _quietly(reference: Any, timeout_s: float) -> None:
    """Wait for what may have ended already."""
    try:
        ray.get(reference, timeout=timeout_s)
    except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
        return

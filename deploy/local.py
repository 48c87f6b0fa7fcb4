"""A whole run on this machine: coordinator, workers and shaped links, each its own process.

For the demo, for emulation and for tests. Starts every part by its command, as a person on
several machines would; refuses to reach into any of them.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from coordinator.state_dir import not_writable
from deploy.processes import Child, Event, ProcessFailed, command, free_port
from deploy.steps import Step, step_of
from scheduler.exit_codes import ExitCode, describe

if TYPE_CHECKING:  # to start a run nobody waits for what reads it
    from coordinator.history import History
    from scheduler.job import JobSpec

START_TIMEOUT_S = 120.0
NAMESPACE_PORT = 29530
"""Every worker's in a namespace, where nobody else could have it."""


Backend = Literal["relay", "switch"]
"""relay: bytes are delayed between sockets. switch: each worker in a network namespace of its own, packets
are delayed between them."""


@dataclass(frozen=True, slots=True)
class LinkOptions:
    """How links between the local workers are shaped. `trace`: a shipped name or a file; None: loopback."""

    trace: str | None = None
    backend: Backend = "relay"
    delay_scale: float = 1.0
    bandwidth_scale: float = 1.0
    window_bytes: int = 0
    """Window of one TCP flow, which limits it to window / round trip; 0: no such limit."""
    mtu: int = 1500
    """Of the switch: the largest packet in bytes, IP header included."""
    queue_bytes: int = 0
    """Of the switch, in front of each link; 0: bandwidth x round trip, at least 256 KiB."""
    seed: int = 0
    """Of the switch's jitter and losses."""

    def __post_init__(self) -> None:
        own = (self.mtu, self.queue_bytes, self.seed)
        if self.backend == "relay" and own != (1500, 0, 0):
            raise ValueError(
                "found an MTU, a queue or a seed with the relay, which knows no packets: "
                "required --backend switch"
            )


@dataclass(frozen=True, slots=True)
class LocalOptions:
    """What `deploy local` can be told beyond the job."""

    workers: int = 4
    links: LinkOptions = LinkOptions()
    state_dir: Path = Path("runs/local")
    resume: bool = False
    threads: int = 1
    streams: int = 2
    data_dir: Path | None = None
    """What paths of the job are relative to; None: the job file's directory."""
    wait_for_workers_s: float = 0.0
    """How long a run that lost workers waits for others; nobody starts any here."""
    rejoin_timeout_s: float = 0.0
    """How long workers try to join again; nobody starts the coordinator again here."""
    options_of: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """More options of the `coordinator`, of every `worker`, or of one by its name where it is first started,
    as on their command lines."""
    plan: Path | None = None
    """A plan to run, as JSON; None: the coordinator makes one."""
    dashboard: str = ""
    """HOST:PORT of the page that shows the run; '': none."""


def _trace_nodes(trace: str) -> tuple[str, ...]:
    from sim.trace import load  # the simulator is only needed when links are shaped

    return tuple(load(trace).nodes)


@dataclass(frozen=True, slots=True)
class Site:
    """Where a worker runs: the command that takes it there, where it listens, how it reaches its peers."""

    enter: tuple[str, ...]
    bind: str
    routes: Path | None = None


class LocalCluster:
    """`with LocalCluster(job, workers=4, links="four_cities") as run: for step in run.steps(): ...`

    Entering starts everything and returns when every worker has been started (none, for a run that is
    resumed and had all its steps); leaving ends every process, whatever happened. Raises ProcessFailed with
    the log of what failed.
    """

    def __init__(
        self,
        job: Path | str | JobSpec,
        options: LocalOptions | None = None,
        *,
        workers: int | None = None,
        links: str | LinkOptions | None = None,
        state_dir: Path | None = None,
        data_dir: Path | None = None,
    ) -> None:
        """`job`: a file, or a job whose paths are relative to `data_dir` (else to the present directory).

        `workers`, `links` (a trace's name or file) and the directories replace what `options` says. With
        neither `options` nor `state_dir` the state is in a directory that goes when the cluster is left.
        """
        self._keeps = options is not None or state_dir is not None
        given = options or LocalOptions()
        self.options = replace(
            given,
            workers=workers or given.workers,
            links=given.links if links is None else LinkOptions(links) if isinstance(links, str) else links,
            state_dir=state_dir or given.state_dir,
            data_dir=data_dir or given.data_dir,
        )
        self._spec = None if isinstance(job, Path | str) else job
        self.job = Path(job) if isinstance(job, Path | str) else self.options.state_dir / "job.json"
        self.names: tuple[str, ...] = ()
        self.address = ""
        self.token_file = ""
        self.workers: dict[str, Child] = {}
        self._argv: dict[str, list[str]] = {}
        self._over: tuple[Event, ...] = ()
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        try:
            if not self._keeps:
                directory = self._exit.enter_context(TemporaryDirectory(prefix="isthmus-"))
                self.options = replace(self.options, state_dir=Path(directory))
            if self._spec is not None:
                self._write_job(self._spec)
            self._start()
        except BaseException:
            self._exit.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.close()

    @property
    def logs(self) -> Path:
        return self.options.state_dir / "logs"

    @property
    def data_dir(self) -> Path:
        """What paths of the job are relative to, for every worker of the run and its model."""
        return self.options.data_dir or self.job.resolve().parent

    def _start(self) -> None:
        places = self._places()
        try:
            self.logs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = str(not_writable(self.options.state_dir, error))
            raise ProcessFailed(reason, ExitCode.STATE_DIR) from error
        self.names = tuple(f"w{i}-{place.lower()}" if place else f"w{i}" for i, place in enumerate(places))
        self.coordinator = self._child("coordinator", self.coordinator_argv())
        listening = self.coordinator.wait_for("listening", START_TIMEOUT_S, "finished")
        if listening["event"] == "finished":  # resumed, and had all its steps: nobody has anything to do
            self._over = (listening,)
            return
        self.address, self.token_file = listening["address"], listening["token_file"]
        sites = self._sites(places)
        for name, place in zip(self.names, places, strict=True):
            self._argv[name] = self._worker_argv(name, place, sites[name])
            self.start_worker(name, self.options.options_of.get(name, ()))

    def start_worker(self, name: str, more: Sequence[str] = ()) -> Child:
        """Start this worker by its command and `more`; again, if the one of before has ended."""
        self.workers[name] = self._child(name, [*self._argv[name], *more])
        return self.workers[name]

    def _write_job(self, spec: JobSpec) -> None:
        from scheduler.job import job_to_json

        self.job = self.options.state_dir / "job.json"
        self.job.parent.mkdir(parents=True, exist_ok=True)
        self.job.write_text(job_to_json(spec), encoding="utf-8")
        self.options = replace(self.options, data_dir=self.options.data_dir or Path.cwd())

    def _places(self) -> tuple[str, ...]:
        """The trace's node of each worker, round robin when there are more workers than nodes."""
        trace = self.options.links.trace
        if trace is None:
            return ("",) * self.options.workers
        nodes = _trace_nodes(trace)
        return tuple(nodes[i % len(nodes)] for i in range(self.options.workers))

    def _child(self, name: str, argv: Sequence[str]) -> Child:
        child = Child(name, argv, self.logs / f"{name}.log")
        self._exit.callback(child.stop)
        return child

    def coordinator_argv(self, bind: str = "127.0.0.1:0", resume: bool = False) -> list[str]:
        """The command that starts the coordinator, for the first time or again."""
        o = self.options
        return command(
            "coordinator", "start", str(self.job), "--bind", bind, "--state-dir", str(o.state_dir),
            "--min-workers", str(o.workers), "--json", *(["--resume"] if o.resume or resume else []),
            *(["--plan", str(o.plan)] if o.plan else []),
            *(["--dashboard", o.dashboard] if o.dashboard else []),
            "--wait-for-workers", str(o.wait_for_workers_s), *o.options_of.get("coordinator", ()),
        )  # fmt: skip

    def _worker_argv(self, name: str, place: str, site: Site) -> list[str]:
        o = self.options
        argv = [*site.enter, *command(
            "worker", "join", self.address, "--token-file", self.token_file, "--name", name,
            "--device", "cpu", "--bind", site.bind, "--data-dir", str(self.data_dir),
            "--threads", str(o.threads), "--streams", str(o.streams), "--json",
            "--rejoin-timeout", str(o.rejoin_timeout_s), *o.options_of.get("worker", ()),
        )]  # fmt: skip
        if place:
            argv += ["--region", place]
        if site.routes is not None:
            argv += ["--peer-map", str(site.routes)]
        return argv

    def _sites(self, places: Sequence[str]) -> dict[str, Site]:
        """Where each worker runs; starts what shapes the links between them."""
        if self.options.links.trace is None:
            return {name: Site((), f"127.0.0.1:{free_port()}") for name in self.names}
        of_backend = self._relayed if self.options.links.backend == "relay" else self._switched
        return of_backend(dict(zip(self.names, places, strict=True)))

    def _relayed(self, places: dict[str, str]) -> dict[str, Site]:
        addresses = {name: f"127.0.0.1:{free_port()}" for name in places}
        nodes = [f"{name}={place}={addresses[name]}" for name, place in places.items()]
        routes = self._shape("shape", nodes, "listening", self.options.state_dir / "routes.json")
        sites = {}
        for name in places:
            own = self.options.state_dir / f"routes-{name}.json"
            own.write_text(json.dumps(routes[name], indent=1))
            sites[name] = Site((), addresses[name], own)
        return sites

    def _switched(self, places: dict[str, str]) -> dict[str, Site]:
        """Each in a namespace, from where a door leads to the coordinator's address."""
        nodes = [f"{name}={place}" for name, place in places.items()]
        links = self.options.links
        more = (
            "--door", self.address.rpartition(":")[2], "--mtu", str(links.mtu),
            "--queue-bytes", str(links.queue_bytes), "--seed", str(links.seed),
        )  # fmt: skip
        spaces = self._shape("switch", nodes, "ready", self.options.state_dir / "namespaces.json", more)
        return {
            name: Site(tuple(space["enter"]), f"{space['address']}:{NAMESPACE_PORT}")
            for name, space in spaces.items()
        }

    def _shape(
        self, name: str, nodes: Sequence[str], event: str, map_file: Path, more: Sequence[str] = ()
    ) -> dict[str, dict[str, Any]]:
        """Start `sim shape` or `sim switch`; what it writes into `map_file` once it says `event`."""
        links = self.options.links
        assert links.trace is not None
        map_file.unlink(missing_ok=True)
        argv = command(
            "sim", name, "--trace", links.trace, "--map-file", str(map_file), "--delay-scale",
            str(links.delay_scale), "--bandwidth-scale", str(links.bandwidth_scale), "--window-bytes",
            str(links.window_bytes), "--json", *more, *(word for node in nodes for word in ("--node", node)),
        )  # fmt: skip
        self._child("links", argv).wait_for(event, START_TIMEOUT_S)
        found: dict[str, dict[str, Any]] = json.loads(map_file.read_text())
        return found

    def events(self) -> Iterator[Event]:
        """What the coordinator says, until it ends."""
        yield from self._over
        yield from self.coordinator.events()

    def steps(self) -> Iterator[Step]:
        """Each step once it is committed, until the run ends.

        Raises ProcessFailed, with the run's exit code and reason, if it ends before it is done or drained.
        """
        reason = ""
        for event in self.events():
            if (step := step_of(event)) is not None:
                yield step
            elif event["event"] == "failed":
                reason = f" ({event['reason']})"
        code = self.wait()
        if code != ExitCode.OK:
            raise ProcessFailed(f"the run ended with {describe(code)}{reason} Logs: {self.logs}", code)

    def history(self) -> History:
        """All that the run has written down so far: steps, plan, events, timelines. Raises StoreError."""
        from coordinator.history import read_history

        return read_history(self.options.state_dir)

    def checkpoint(self) -> Path | None:
        """The last whole checkpoint, for `worker generate` and `worker export`; None: there is none yet."""
        from coordinator.checkpoints import CheckpointStore

        store = CheckpointStore(self.options.state_dir)
        steps = store.steps()
        return store.directory(steps[-1]) if steps else None

    def drain(self) -> None:
        """Finish the step, save, end: the coordinator's first Ctrl-C."""
        self.coordinator.interrupt()

    def kill(self) -> None:
        """End coordinator and workers at once; one that is stopped would hear nothing else."""
        for child in (self.coordinator, *self.workers.values()):
            child.kill()

    def wait(self) -> int:
        """The coordinator's exit code, once it has ended; workers get a moment to leave by themselves."""
        code = self.coordinator.process.wait()
        for child in self.workers.values():
            try:
                child.process.wait(10)
            except subprocess.TimeoutExpired:
                child.stop()
        return code


def forget(state_dir: Path) -> None:
    """Remove an earlier run's state. Refuses a folder that is not one of ours, so nothing else is lost;
    folders without a file in them hold nothing, such as the one where the first run's report will be."""
    if not state_dir.exists():
        return
    ours = any((state_dir / mark).exists() for mark in ("logs", "run.sqlite", "checkpoints"))
    if not ours and any(not path.is_dir() for path in state_dir.rglob("*")):
        raise ProcessFailed(
            f"{state_dir} exists and holds no run (found neither logs/ nor checkpoints/); "
            "remove it yourself or name another --state-dir",
            ExitCode.STATE_DIR,
        )
    shutil.rmtree(state_dir)

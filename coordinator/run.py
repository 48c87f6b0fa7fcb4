"""One run of the coordinator from an open state directory to an exit code: listens, drives, says good-bye.

Puts driver, service and signals together; decides nothing about the run.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from protos.relay_key import relay_key
from scheduler.exit_codes import ExitCode
from scheduler.job import JobSpec
from scheduler.lease import LEASE_S
from scheduler.liveness import HEARTBEAT_S, SILENCE, Patience
from scheduler.replan import Patience as Moving

from .certs import CA, TLS_DIR, ServerTls
from .database import DatabaseError
from .driver import Driver, Say
from .events import Drain
from .planning import BETWEEN_STEPS, Planner, make
from .progress import while_heard
from .records import Options
from .relaying import relay_beside
from .resume import ADDRESS_FILE, OpenRun, check_key
from .serving import PortInUse, serve
from .state import start
from .store import Superseded
from .tokens import Tokens

EVERYWHERE = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}
GRACE_S = 15.0
"""How long workers have to leave after the run has ended."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What `coordinator start` can be told beyond the job."""

    bind: str = "127.0.0.1:29520"
    min_workers: int = 1
    dry_run: bool = False
    heartbeat_s: float = HEARTBEAT_S
    tls: ServerTls | None = None
    """None: in the clear."""
    relay: str = ""
    """host:port that workers reach a relay at; '': as `relay_bind` says."""
    relay_bind: str = ""
    """host:port at which to run a relay here; '': none is run."""
    regather_s: float = 300.0
    """How long a run that lost workers waits for others if it cannot go on without."""
    silence: Patience = SILENCE
    lease_s: float = LEASE_S
    """Of a run that another coordinator may take over: how long it waits for this one."""
    reconsider_s: float = 30.0
    """Between two looks for a faster plan while the run goes on; 0: there are none."""
    patience: Moving = BETWEEN_STEPS
    """How much faster another plan must look."""


def options_of(job: JobSpec, run: RunOptions, check_key: bytes = b"") -> Options:
    """What the state machine needs of the job and the command line. `check_key`: see `records.Options`."""
    return Options(
        steps=job.steps,
        global_batch=job.global_batch,
        micro_batch=job.profiled_micro_batch,
        sequence_length=job.sequence_length,
        n_layers=job.n_layers,
        eval_every=job.eval_every,
        evaluate=job.data.eval_samples > 0,
        save_every=job.checkpoint.every,
        min_workers=run.min_workers,
        dry_run=run.dry_run,
        heartbeat_s=run.heartbeat_s,
        regather_s=run.regather_s,
        silence=run.silence,
        reconsider_s=run.reconsider_s,
        neighbours_every=job.checkpoint.neighbours_every,
        checks_every=job.checks.every,
        check_tolerance=job.checks.tolerance,
        check_key=check_key,
    )


def advertised(bind: str, port: int) -> str:
    """The address to join at: the bound one, with the real port."""
    host = bind.rpartition(":")[0]
    return f"{host}:{port}"


def _beside(address: str) -> str:
    """The address for commands on this machine: what listens everywhere is reached by loopback."""
    host, _, port = address.rpartition(":")
    return f"{EVERYWHERE.get(host, host)}:{port}"


async def run(
    job: JobSpec,
    opened: OpenRun,
    options: RunOptions,
    token: tuple[str, Path],
    say: Say,
    planner: Planner = make,
) -> ExitCode:
    """Drive the run to its end. Raises PortInUse if the address cannot be listened on."""
    key = check_key(opened.state_dir) if job.checks.every else b""
    machine = options_of(job, options, key)
    state = start(machine, opened.restore, opened.taken_up, opened.plan_version)
    conduct, quarantined = opened.store.last_conduct()
    state = replace(state, conduct=conduct, quarantined=quarantined)
    driver = Driver(job, opened, state, planner, while_heard(say), options.patience, options.lease_s)
    tokens = Tokens(opened.state_dir)
    beside = ExitStack()
    try:
        at = _relay(options, token[0], beside)
        server, port = await serve(driver, token[0], tokens, options.bind, options.tls, at)
    except PortInUse:
        beside.close()
        tokens.close()
        raise
    address = advertised(options.bind, port)
    address_file = opened.state_dir / ADDRESS_FILE
    address_file.write_text(f"{_beside(address)}\n")
    try:
        with _signals(driver):  # before anybody is told, so that whoever was told can end the run
            driver.tell(
                "listening",
                address=address,
                token_file=str(token[1]),
                run=opened.run,
                pid=os.getpid(),
                state_dir=str(opened.state_dir),
                step=state.done,
                steps=job.steps,
                min_workers=options.min_workers,
                tls=options.tls is not None,
                relay=at,
                join=f"worker join {address} --token-file {token[1]}{_ca(opened.state_dir, options.tls)}",
            )
            for note in opened.notes:
                driver.tell("note", reason=note)
            await driver.tick()
            await driver.settle(GRACE_S)
    finally:
        await server.stop(1.0)
        beside.close()
        tokens.close()
        address_file.unlink(missing_ok=True)
        if not driver.superseded:
            with suppress(Superseded, DatabaseError):  # it runs out by itself
                opened.store.give_lease_back()
    return driver.state.code


def _relay(options: RunOptions, token: str, beside: ExitStack) -> str:
    """Where workers find a relay, which is run here if it is asked for; '' without one. Raises PortInUse."""
    if not options.relay_bind:
        return options.relay
    try:
        address, _ = beside.enter_context(relay_beside(options.relay_bind, relay_key(token)))
    except OSError as error:
        raise PortInUse(
            f"{options.relay_bind}: the relay cannot listen there ({error.strerror or error}); "
            "give another --relay-bind"
        ) from error
    return options.relay or address


def _ca(state_dir: Path, tls: ServerTls | None) -> str:
    """What of the authority the line to join with says."""
    if tls is None:
        return ""
    own = state_dir / TLS_DIR / CA
    return f" --ca {own if own.exists() else 'FILE'}"


@contextmanager
def _signals(driver: Driver) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM drains, the second stops; signals are as before afterwards."""
    loop = asyncio.get_running_loop()

    def on_signal(name: str) -> None:
        driver.apply(Drain(f"{name} was received", now=bool(driver.state.draining)))

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, on_signal, number.name)
    except (ValueError, RuntimeError):  # not the main thread: whoever embeds the run handles signals
        yield
        return
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


__all__ = ["PortInUse", "RunOptions", "advertised", "options_of", "run"]

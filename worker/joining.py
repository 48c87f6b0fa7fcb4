"""`worker join`: its options, checked before anything is opened, and the member that they ask for.

Torch is imported once they are right.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from pathlib import Path
from typing import Annotated

import typer

from protos.ending import end
from protos.log_lines import LogFormat, LogLines
from scheduler.exit_codes import ExitCode
from worker.options import (
    Address,
    AsJson,
    Bind,
    CaFile,
    Insecure,
    Say,
    TokenFile,
    allow,
    read_token,
    require_address,
)


def join(
    address: Address,
    token_file: TokenFile = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", envvar="ISTHMUS_DEVICE")] = "auto",
    bind: Bind = None,
    advertise: Annotated[
        str | None,
        typer.Option(help="HOST:PORT that peers connect to, if not --bind.", envvar="ISTHMUS_ADVERTISE"),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Default: host name and process id.", envvar="ISTHMUS_NAME")
    ] = None,
    region: Annotated[
        str,
        typer.Option(help="Where this machine is; neighbours are placed together.", envvar="ISTHMUS_REGION"),
    ] = "",
    max_memory: Annotated[
        str | None, typer.Option(help="Use at most this, like 20GB.", envvar="ISTHMUS_MAX_MEMORY")
    ] = None,
    data_dir: Annotated[
        Path, typer.Option(help="Paths of the job are relative to it.", envvar="ISTHMUS_DATA_DIR")
    ] = Path(),
    state_dir: Annotated[
        Path, typer.Option(help="Packed data and the pid file of this worker.", envvar="ISTHMUS_WORKER_DIR")
    ] = Path.home() / ".cache" / "isthmus",
    peer_map: Annotated[
        Path | None,
        typer.Option(help='JSON {"peer": "host:port"}: reach these peers there.', envvar="ISTHMUS_PEER_MAP"),
    ] = None,
    streams: Annotated[
        int, typer.Option(min=1, max=64, help="TCP streams to each peer.", envvar="ISTHMUS_STREAMS")
    ] = 2,
    threads: Annotated[int, typer.Option(min=1, help="Torch threads.", envvar="ISTHMUS_THREADS")] = 1,
    join_timeout: Annotated[
        float, typer.Option(min=0, help="Seconds to keep trying to join.", envvar="ISTHMUS_JOIN_TIMEOUT")
    ] = 120.0,
    rejoin_timeout: Annotated[
        float,
        typer.Option(
            min=0,
            help="Seconds to keep trying to join again when the coordinator is gone; 0: end.",
            envvar="ISTHMUS_REJOIN_TIMEOUT",
        ),
    ] = 300.0,
    identity: Annotated[
        Path | None,
        typer.Option(
            help="Directory of this worker's key pair, made on first use; default: the first one of "
            "--state-dir that no other worker uses.",
            envvar="ISTHMUS_IDENTITY",
        ),
    ] = None,
    ca: CaFile = None,
    insecure: Insecure = False,
    fail_at: Annotated[list[str] | None, typer.Option(hidden=True)] = None,
    log_format: Annotated[
        LogFormat,
        typer.Option(
            help="json: as --json, with time, level, run, worker and step in every line.",
            envvar="ISTHMUS_LOG_FORMAT",
        ),
    ] = "text",
    as_json: AsJson = False,
) -> None:
    """Join the run of the coordinator at HOST:PORT and work until it ends."""
    as_json = as_json or log_format == "json"
    bind = bind or "127.0.0.1:0"
    authority = allow(address, bind, ca, insecure, as_json)
    if advertise is not None:
        require_address(advertise, "--advertise", as_json)
    token = read_token(token_file, as_json)
    try:
        import torch  # noqa: F401 (the rest of this command cannot do without)
    except ImportError:
        end(ExitCode.DEVICE, "found no torch; install it with: pip install 'isthmus[worker]'", as_json)
    from worker.allocator import keep_freed_memory
    from worker.device import DeviceError, choose_device, parse_bytes
    from worker.faults import parse_fault
    from worker.identity import IdentityError, first_free, open_identity
    from worker.member import MemberOptions, run_member
    from worker.session import JoinRefused
    from worker.transport import TransportError

    keep_freed_memory()
    name = name or f"{socket.gethostname()}-{os.getpid()}"
    logs = LogLines(time.time, name) if log_format == "json" else None
    if logs is not None:
        logs.take_over_logging()
    say = Say(as_json, logs)
    try:
        limit = parse_bytes(max_memory) if max_memory else None
        local = choose_device(device, name=name, region=region, max_memory_bytes=limit)
    except DeviceError as e:
        end(ExitCode.DEVICE, str(e), as_json)
    try:
        faults = tuple(parse_fault(text) for text in fail_at or ())
    except ValueError as e:
        end(ExitCode.USAGE, f"--fail-at: {e}", as_json)
    try:
        own = open_identity(identity) if identity else first_free(state_dir / "identities")
    except IdentityError as e:
        end(ExitCode.STATE_DIR, str(e), as_json)
    options = MemberOptions(
        address=address,
        token=token,
        name=name,
        bind=bind,
        advertise=advertise,
        data_dir=data_dir,
        cache_dir=state_dir / "tokens",
        peer_map=peer_map,
        streams=streams,
        threads=threads,
        join_timeout_s=join_timeout,
        rejoin_timeout_s=rejoin_timeout,
        identity=own,
        authority=authority,
        faults=faults,
        at_step=logs.at_step if logs is not None else lambda _: None,
    )
    pid_file = state_dir / f"worker-{os.getpid()}.json"
    pid_file.parent.mkdir(parents=True, exist_ok=True)
    pid_file.write_text(json.dumps({"pid": os.getpid(), "name": name, "address": address}))
    try:
        code = asyncio.run(run_member(options, local, say))
    except JoinRefused as e:
        end(e.code, str(e), as_json)
    except TransportError as e:
        end(ExitCode.PORT_IN_USE, str(e), as_json)
    finally:
        pid_file.unlink(missing_ok=True)
        own.close()
    raise typer.Exit(int(code))

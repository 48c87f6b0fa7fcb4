"""The `worker` command. Reads options and prints; torch is imported only by what needs it.

What the exit codes mean is `scheduler.exit_codes`.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from pathlib import Path
from typing import Annotated

import typer

from protos.ending import end
from protos.relay_key import relay_key
from scheduler.exit_codes import ExitCode
from worker.joining import join
from worker.model_commands import export, generate
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

app = typer.Typer(
    help="Hold a stage of a model and run its steps. Exit codes: `coordinator exit-codes`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(join)


@app.command()
def check(
    address: Address,
    token_file: TokenFile = None,
    bind: Bind = None,
    ca: CaFile = None,
    insecure: Insecure = False,
    record: Annotated[
        Path | None,
        typer.Option(
            help="Measure the links to all workers (some seconds each) and write them here as a trace "
            "(NAME.csv and its companions), to be replayed by `sim run --trace`."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="This machine in the trace; default: its host name.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say whether this machine could join: the coordinator answers, the token fits, the data port is free,
    and the workers that are there can be reached."""
    from worker.check import CheckFailed, check_all, write_trace

    bind = bind or "127.0.0.1:0"
    authority = allow(address, bind, ca, insecure, as_json)
    here = name or socket.gethostname()
    try:
        checked = check_all(
            address, read_token(token_file, as_json), bind, here, record is not None, authority
        )
        found = list(checked.found)
        if record is not None and checked.trace is None:
            end(
                ExitCode.USAGE,
                "--record: found no worker to measure a link to, required one or more",
                as_json,
            )
        if record is not None and checked.trace is not None:
            found.append(f"the links from {here} are in {write_trace(record, checked.trace)}")
    except CheckFailed as e:
        end(e.code, str(e), as_json)
    except OSError as e:
        end(ExitCode.USAGE, f"--record {record}: {e}", as_json)
    if as_json:
        typer.echo(json.dumps({"event": "ok", "found": found}))
    else:
        typer.echo("\n".join(f"ok: {line}" for line in found))


@app.command()
def relay(
    token_file: TokenFile = None,
    bind: Annotated[
        str, typer.Option(help="HOST:PORT that workers connect to.", envvar="ISTHMUS_RELAY_BIND")
    ] = "127.0.0.1:29540",
    as_json: AsJson = False,
) -> None:
    """Pass on the tensors of workers that cannot reach each other; `coordinator start --relay HOST:PORT`
    tells them of it. It needs the run's own token, and sees nothing but encrypted bytes."""
    from protos.relay import serve

    require_address(bind, "--bind", as_json)
    token = read_token(token_file, as_json)
    if not token:
        end(ExitCode.TOKEN, "found no token; pass --token-file with the run's own", as_json)
    try:
        asyncio.run(serve(bind, relay_key(token), Say(as_json)))
    except OSError as e:
        end(ExitCode.PORT_IN_USE, f"--bind {bind}: found {e.strerror or e}, required a free address", as_json)


@app.command()
def leave(
    name: Annotated[str | None, typer.Option(help="Which worker; default: every one of --state-dir.")] = None,
    state_dir: Annotated[
        Path, typer.Option(help="As given to `worker join`.", envvar="ISTHMUS_WORKER_DIR")
    ] = Path.home() / ".cache" / "isthmus",
) -> None:
    """Ask the workers of this machine to finish their step and leave."""
    told = []
    for file in sorted(state_dir.glob("worker-*.json")):
        entry = json.loads(file.read_text())
        if name in (None, entry["name"]):
            try:
                os.kill(int(entry["pid"]), signal.SIGINT)  # SIGTERM is a machine's that is taken back
                told.append(entry["name"])
            except ProcessLookupError:
                file.unlink(missing_ok=True)  # it was killed and could not tidy up
    if not told:
        end(ExitCode.USAGE, f"found no worker{f' named {name}' if name else ''} in {state_dir}")
    typer.echo(f"told to leave: {', '.join(told)}")


app.command()(export)
app.command()(generate)


def main() -> None:
    app()


if __name__ == "__main__":
    main()

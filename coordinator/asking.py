"""`coordinator status | drain | stop`: what one asks of a coordinator that runs, here or elsewhere."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from protos.ending import end
from protos.tls import Authority, TlsError, read_authority
from scheduler.exit_codes import ExitCode

from .certs import CA, TLS_DIR
from .client import CallFailed, Coordinator, status_json
from .client import drain as call_drain
from .client import status as call_status
from .options import DEFAULT_STATE_DIR, AsJson, StateDir, TokenFile, split_address
from .records import OVER
from .resume import ADDRESS_FILE, TOKEN_FILE, OpenError, read_token
from .status import lines_of
from .status import watch as watch_status

Address = Annotated[
    str | None,
    typer.Option(help="HOST:PORT; default: as the state directory says.", envvar="ISTHMUS_ADDRESS"),
]
CaFile = Annotated[
    Path | None,
    typer.Option(
        "--ca", help="The coordinator's ca.pem; default: the state directory's.", envvar="ISTHMUS_CA"
    ),
]


def _where(
    address: str | None, token_file: Path | None, ca: Path | None, state_dir: Path, as_json: bool
) -> Coordinator:
    """Whom to ask, from the options or the state directory."""
    if address is not None:
        split_address(address, as_json, "--address")
    else:
        path = state_dir / ADDRESS_FILE
        try:
            address = path.read_text().strip()
        except OSError:
            end(
                ExitCode.UNREACHABLE,
                f"{state_dir}: found no running coordinator; pass --address HOST:PORT or its --state-dir "
                f"(of a run that has ended `coordinator runs {state_dir}` tells)",
                as_json,
            )
    try:
        return Coordinator(
            address, read_token(token_file or state_dir / TOKEN_FILE), _authority(ca, state_dir)
        )
    except OpenError as e:
        end(e.code, str(e), as_json)
    except TlsError as e:
        end(ExitCode.TLS, str(e), as_json)


def _authority(ca: Path | None, state_dir: Path) -> Authority | None:
    own = state_dir / TLS_DIR / CA
    if ca is None and not own.exists():
        return None
    return read_authority(ca or own)


def status(
    address: Address = None,
    token_file: TokenFile = None,
    ca: CaFile = None,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    watch: Annotated[bool, typer.Option("--watch", help="Draw it again until the run is over.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two drawings of --watch.")] = 2.0,
    as_json: AsJson = False,
) -> None:
    """Show phase, step, loss, speed, and every worker with its layers."""
    asked = _where(address, token_file, ca, state_dir, as_json)
    try:
        if watch and not as_json:
            watch_status(lambda: call_status(asked), Console(), lambda: time.sleep(every))
            return
        while True:
            reply = call_status(asked)
            typer.echo(status_json(reply) if as_json else "\n".join(lines_of(reply)))
            if not watch or reply.phase in OVER:
                return
            time.sleep(every)
    except CallFailed as e:
        end(e.code, str(e), as_json)
    except KeyboardInterrupt:
        raise typer.Exit(int(ExitCode.OK)) from None


def _ask_to_end(
    address: str | None,
    token_file: Path | None,
    ca: Path | None,
    state_dir: Path,
    as_json: bool,
    *,
    now: bool,
) -> None:
    asked = _where(address, token_file, ca, state_dir, as_json)
    command = "stop" if now else "drain"
    try:
        phase = call_drain(asked, now=now, reason=f"`coordinator {command}`")
    except CallFailed as e:
        end(e.code, str(e), as_json)
    if as_json:
        typer.echo(json.dumps({"event": command, "phase": phase}))
    else:
        typer.echo(f"{command}: the run is now {phase}")


def drain(
    address: Address = None,
    token_file: TokenFile = None,
    ca: CaFile = None,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    as_json: AsJson = False,
) -> None:
    """Finish the steps under way, save, release the workers, end."""
    _ask_to_end(address, token_file, ca, state_dir, as_json, now=False)


def stop(
    address: Address = None,
    token_file: TokenFile = None,
    ca: CaFile = None,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    as_json: AsJson = False,
) -> None:
    """End at once and save nothing; the last checkpoint stays."""
    _ask_to_end(address, token_file, ca, state_dir, as_json, now=True)

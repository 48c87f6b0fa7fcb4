"""Options that several commands of `worker` share and how they are read; what a worker says of itself."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from protos.address import AddressError, split_host_port
from protos.ending import end
from protos.log_lines import LogLines
from protos.tls import Authority, TlsError, is_loopback, read_authority
from scheduler.exit_codes import ExitCode
from scheduler.reasons import reason_of

Address = Annotated[
    str, typer.Argument(metavar="HOST:PORT", help="The coordinator.", envvar="ISTHMUS_ADDRESS")
]
TokenFile = Annotated[
    Path | None, typer.Option(help="File with the coordinator's token.", envvar="ISTHMUS_TOKEN_FILE")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line on standard output.")]
Bind = Annotated[
    str | None,
    typer.Option(help="HOST:PORT for tensors; default: a free port of loopback.", envvar="ISTHMUS_DATA_BIND"),
]
CaFile = Annotated[
    Path | None,
    typer.Option("--ca", help="The ca.pem that `coordinator certs` made.", envvar="ISTHMUS_CA"),
]
Insecure = Annotated[
    bool,
    typer.Option(
        "--insecure",
        help="Go beyond this machine without --ca: whoever reads the network reads token and keys.",
        envvar="ISTHMUS_INSECURE",
    ),
]


class Say:
    """What a worker tells of itself: a line for people, or a JSON object."""

    def __init__(self, as_json: bool, logs: LogLines | None = None) -> None:
        self._as_json = as_json
        self._logs = logs

    def __call__(self, event: str, **values: object) -> None:
        if self._logs is not None:
            typer.echo(self._logs.of_event({"event": event, **values}))
        elif self._as_json:
            typer.echo(json.dumps({"event": event, **values}))
        elif event == "stage":
            typer.echo(
                f"stage {values['stage']} of replica {values['replica']}: "
                f"layers {values['first_layer']} to {values['last_layer']}"
            )
        else:
            typer.echo(f"{event}: " + ", ".join(f"{k} {v}" for k, v in values.items()))


def read_token(path: Path | None, as_json: bool = False) -> str:
    """The token of the file or of the environment, or the end of the command."""
    if path is None:
        return os.environ.get("ISTHMUS_TOKEN", "")
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as e:
        reason = f"--token-file {path}: found no token to read ({reason_of(e)}), required the coordinator's"
        end(ExitCode.TOKEN, reason, as_json)


def require_address(where: str, what: str, as_json: bool) -> None:
    """End the command unless `where`, which is `what`, is HOST:PORT."""
    try:
        split_host_port(where, what)
    except AddressError as e:
        end(ExitCode.USAGE, str(e), as_json)


def allow(address: str, bind: str, ca: Path | None, insecure: bool, as_json: bool) -> Authority | None:
    """Who must have signed the coordinator's certificate; None: nobody. Without --ca or --insecure nothing
    leaves this machine in the clear; tensors are always encrypted, with keys that the coordinator names."""
    addresses = address.split(",")
    for what, where in (*(("the coordinator's address", a) for a in addresses), ("--bind", bind)):
        require_address(where, what, as_json)
    if ca is not None:
        try:
            return read_authority(ca)
        except TlsError as e:
            end(ExitCode.TLS, str(e), as_json)
    if not insecure and not all(is_loopback(a.rpartition(":")[0]) for a in addresses):
        end(
            ExitCode.INSECURE_BIND,
            f"HOST:PORT: found {address}, beyond this machine, and no --ca; the token and the keys of the "
            "data plane would travel in the clear. Pass --ca with the coordinator's ca.pem, or --insecure "
            "on a network that is private already",
            as_json,
        )
    return None

"""`coordinator certs` and `coordinator tokens`: what other machines need before they may join."""

from __future__ import annotations

import json
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer

from protos.ending import end
from scheduler.exit_codes import ExitCode

from . import certs as make_certs
from .options import DEFAULT_STATE_DIR, AsJson, StateDir
from .state_dir import not_writable
from .tokens import Purpose, TokenError, TokenInfo, Tokens, until

tokens_app = typer.Typer(
    help="Make, list and revoke tokens that workers join with, or that read the page.", no_args_is_help=True
)

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def certs(
    hosts: Annotated[
        list[str] | None,
        typer.Option("--host", help="Name or address that workers reach it at; may be repeated."),
    ] = None,
    days: Annotated[int, typer.Option(help="How long the coordinator's certificate holds.")] = (
        make_certs.SERVER_DAYS
    ),
    state_dir: StateDir = DEFAULT_STATE_DIR,
    as_json: AsJson = False,
) -> None:
    """Make an authority and the coordinator's certificate in the state directory.

    Copy ca.pem to the workers (`worker join --ca ca.pem`). An authority that is there is used again.
    """
    directory = state_dir / make_certs.TLS_DIR
    try:
        new, names = make_certs.make(directory, hosts or [], days, datetime.now(UTC))
    except make_certs.TlsError as e:
        end(ExitCode.USAGE, str(e), as_json)
    except OSError as e:
        end(ExitCode.STATE_DIR, str(not_writable(state_dir, e)), as_json)
    except ImportError as e:
        end(ExitCode.USAGE, f"found no package `cryptography` ({e}); pip install cryptography", as_json)
    ca = directory / make_certs.CA
    if as_json:
        event = {"event": "certs", "ca": str(ca), "new_authority": new, "names": names, "days": days}
        typer.echo(json.dumps(event))
        return
    typer.echo(f"certificate for {', '.join(names)}, {days} days: {directory / make_certs.SERVER}")
    typer.echo(f"{'new authority' if new else 'authority as before'}; copy to the workers: {ca}")


@contextmanager
def _open(state_dir: StateDir, as_json: bool) -> Iterator[Tokens]:
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        tokens = Tokens(state_dir)
    except (OSError, sqlite3.Error) as e:
        end(ExitCode.STATE_DIR, str(not_writable(state_dir, e)), as_json)
    try:
        yield tokens
    except TokenError as e:
        end(ExitCode.USAGE, str(e), as_json)
    except sqlite3.Error as e:
        end(ExitCode.STATE_DIR, f"{state_dir}: the tokens cannot be read or written ({e})", as_json)
    finally:
        tokens.close()


def seconds(text: str, option: str = "--valid") -> float:
    """`90s`, `15m`, `12h`, `7d` in seconds. Raises TokenError, which names the `option`."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([smhd])", text)
    if not match:
        raise TokenError(f"{option}: found {text[:40]!r}, required a number and s, m, h or d, like 12h")
    return float(match[1]) * _UNITS[match[2]]


@tokens_app.command("create")
def create(
    uses: Annotated[
        int | None, typer.Option(help="Workers that may join with it; 1 if nothing is said.")
    ] = None,
    valid: Annotated[str, typer.Option(help="For how long: 90s, 15m, 12h, 7d.")] = "1d",
    label: Annotated[str, typer.Option(help="For you, to tell tokens apart.")] = "",
    purpose: Annotated[
        Purpose,
        typer.Option("--for", help="join: workers come with it. dashboard: it reads the page, and no more."),
    ] = "join",
    state_dir: StateDir = DEFAULT_STATE_DIR,
    as_json: AsJson = False,
) -> None:
    """Print a new token. It is shown this once; only its hash is kept."""
    with _open(state_dir, as_json) as tokens:
        if purpose == "dashboard" and uses is not None:
            raise TokenError(
                f"--uses: found {uses}, required none: who has a page's token reads until it ends"
            )
        valid_s, now_s = seconds(valid), time.time()
        uses = 1 if uses is None else uses
        token = tokens.create(now_s, uses=uses, valid_s=valid_s, label=label, purpose=purpose)
    if as_json:
        event = {"event": "token", "token": token, "for": purpose, "valid_s": valid_s}
        typer.echo(json.dumps(event | ({"uses": uses} if purpose == "join" else {})))
        return
    typer.echo(token)
    typer.echo(
        f"{uses} use(s) within {valid}; write it to a file for `worker join --token-file`"
        if purpose == "join"
        else f"reads the page until {until(now_s + valid_s)}: ADDRESS/?token=TOKEN, or Authorization: Bearer",
        err=True,
    )


@tokens_app.command("list")
def list_tokens(state_dir: StateDir = DEFAULT_STATE_DIR, as_json: AsJson = False) -> None:
    """Show every token: its id, what is left of it, and who came with it."""
    now_s = time.time()
    with _open(state_dir, as_json) as tokens:
        found = tokens.list()
        for t in found:
            typer.echo(json.dumps(asdict(t) | {"state": t.state(now_s)}) if as_json else _line(t, now_s))
    if not found and not as_json:
        typer.echo(f"{state_dir}: found no token but the run's own; `coordinator tokens create` makes one")


def _line(t: TokenInfo, now_s: float) -> str:
    who = f": {', '.join(t.names)}" if t.names else ""
    what = f"{t.used} of {t.uses} used" if t.purpose == "join" else "reads the page"
    return f"{t.id}  {t.state(now_s):8} {what}, until {until(t.expires_s)}  {t.label}{who}"


@tokens_app.command("revoke")
def revoke(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="As `tokens list` shows it.")],
    state_dir: StateDir = DEFAULT_STATE_DIR,
    as_json: AsJson = False,
) -> None:
    """Let nobody join, or read the page, with this token any more; members stay."""
    with _open(state_dir, as_json) as tokens:
        found = tokens.revoke(token_id, time.time())
    typer.echo(
        json.dumps({"event": "revoked", "id": found.id, "used": found.used})
        if as_json
        else f"{found.id}: revoked; "
        + (f"{found.used} worker(s) came with it" if found.purpose == "join" else "it reads the page no more")
    )

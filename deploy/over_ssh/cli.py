"""The `deploy ssh` commands: workers of a list of hosts, started, looked at, ended; twice does no harm."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from deploy.over_ssh import script
from deploy.over_ssh.hosts import Host, Hosts, HostsError, read_hosts
from scheduler.exit_codes import ExitCode
from scheduler.reasons import reason_of

app = typer.Typer(
    help="Workers on machines that are reached by ssh; see docs/deploy/ssh.md for the hosts file.",
    no_args_is_help=True,
    add_completion=False,
)
File = Annotated[Path, typer.Argument(help="The hosts file.", exists=True, dir_okay=False)]
INSTALL_TIMEOUT_S = 1800.0
GRACE_S = 120


def _read(path: Path) -> Hosts:
    try:
        return read_hosts(path)
    except HostsError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(int(ExitCode.USAGE)) from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        typer.echo(f"error: {path}: cannot be read ({reason_of(error)})", err=True)
        raise typer.Exit(int(ExitCode.USAGE)) from None


def _say(hosts: Hosts, of_host: Callable[[Host], str], timeout_s: float) -> None:
    from deploy.over_ssh.shell import say

    if shutil.which("ssh") is None:
        typer.echo(
            "error: found no program `ssh` on this machine, required OpenSSH's client; install it "
            "(Debian: apt install openssh-client), or start the workers by hand with `worker join`",
            err=True,
        )
        raise typer.Exit(int(ExitCode.USAGE))
    failed = 0
    for answer in say(hosts, of_host, timeout_s):
        failed += answer.code != 0
        for line in answer.said.splitlines() or ["(said nothing)"]:
            typer.echo(f"{answer.host}: {line}", err=answer.code != 0)
        if answer.code != 0:
            typer.echo(f"{answer.host}: ended with exit code {answer.code}", err=True)
    if failed:
        typer.echo(
            f"error: {failed} of {len(hosts.hosts)} hosts failed; the others did what was asked", err=True
        )
        raise typer.Exit(int(ExitCode.UNREACHABLE))


@app.command()
def up(file: File) -> None:
    """Install, leave the token, and start the workers that do not run yet."""
    hosts = _read(file)
    token = _text(hosts.token_file)
    ca = _text(hosts.ca) if hosts.ca is not None else None
    _say(hosts, lambda host: script.up(hosts, host, token, ca), INSTALL_TIMEOUT_S)


@app.command()
def status(file: File) -> None:
    """Whether each worker runs, and what it said last."""
    hosts = _read(file)
    _say(hosts, lambda host: script.status(hosts, host), 60.0)


@app.command()
def down(
    file: File,
    grace_s: Annotated[int, typer.Option(min=0, help="Seconds to finish the step and leave.")] = GRACE_S,
) -> None:
    """Tell the workers to finish their step and leave."""
    hosts = _read(file)
    _say(hosts, lambda host: script.down(hosts, host, grace_s), grace_s + 60.0)

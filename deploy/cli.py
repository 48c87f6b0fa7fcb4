"""The `deploy` command. Refuses to know more than how programs are started and what they print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploy.local import LinkOptions, LocalOptions
from deploy.on_ray.cli import app as ray_app
from deploy.options import ChosenBackend
from deploy.over_ssh.cli import app as ssh_app
from deploy.processes import ProcessFailed
from protos.ending import end
from scheduler.exit_codes import ExitCode, from_wire
from scheduler.trace import TraceError

app = typer.Typer(
    help="Start whole runs: coordinator, workers and links, each by its own command.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(ray_app, name="ray")
app.add_typer(ssh_app, name="ssh")

Mtu = Annotated[
    int, typer.Option(min=576, help="Of the switch: largest packet in bytes, IP header included.")
]
QueueBytes = Annotated[
    int, typer.Option(min=0, help="Of the switch: queue of a link; 0: bandwidth x round trip.")
]
LinkSeed = Annotated[int, typer.Option(help="Of the switch's jitter and losses.")]


@app.callback()
def root() -> None:
    """Start whole runs: coordinator, workers and links, each by its own command."""


@app.command()
def local(
    job: Annotated[Path, typer.Argument(help="The job file.", exists=True, dir_okay=False)],
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.", envvar="ISTHMUS_WORKERS")] = 4,
    links: Annotated[
        str | None,
        typer.Option(
            help="A trace by name or file that shapes the links (`sim traces list`); none: loopback."
        ),
    ] = None,
    backend: ChosenBackend = "relay",
    delay_scale: Annotated[float, typer.Option(min=0.0, help="Multiplies the trace's delays.")] = 1.0,
    bandwidth_scale: Annotated[
        float, typer.Option(min=1e-9, help="Multiplies the trace's bandwidths.")
    ] = 1.0,
    window_bytes: Annotated[
        int, typer.Option(min=0, help="Window of one TCP flow (rate = window / round trip); 0: unlimited.")
    ] = 0,
    mtu: Mtu = 1500,
    queue_bytes: QueueBytes = 0,
    link_seed: LinkSeed = 0,
    state_dir: Annotated[
        Path,
        typer.Option(help="Where the run keeps its state.", envvar="ISTHMUS_STATE_DIR", file_okay=False),
    ] = Path("runs/local"),
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint.")] = False,
    fresh: Annotated[bool, typer.Option(help="Forget the run that --state-dir holds.")] = False,
    report: Annotated[Path | None, typer.Option(help="Write the report here.")] = None,
    export: Annotated[
        Path | None, typer.Option(help="Write the trained model here in Hugging Face's layout.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Torch threads of each worker.")] = 1,
    streams: Annotated[int, typer.Option(min=1, help="Parallel streams of each link.")] = 2,
    dashboard: Annotated[
        str, typer.Option(help="HOST:PORT of a page that shows the run, like 127.0.0.1:8265.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, no progress bar.")] = False,
) -> None:
    """Train JOB on this machine: a coordinator, WORKERS processes, and links shaped like a trace's."""
    from deploy.run_local import run_local
    from sim.report import ReportError

    if backend == "switch" and links is None:
        raise typer.BadParameter("found switch without --links TRACE, required the links to be like")
    try:
        shaped = LinkOptions(
            links, backend, delay_scale, bandwidth_scale, window_bytes, mtu, queue_bytes, link_seed
        )
    except ValueError as e:
        raise typer.BadParameter(str(e)) from None
    options = LocalOptions(
        workers=workers,
        links=shaped,
        state_dir=state_dir,
        resume=resume,
        threads=threads,
        streams=streams,
        dashboard=dashboard,
    )
    try:
        code = run_local(job, options, fresh=fresh, report=report, export=export, as_json=as_json)
    except ProcessFailed as failure:
        end(from_wire(failure.code), str(failure), as_json)
    except TraceError as error:
        end(ExitCode.USAGE, f"--links: {error}", as_json)
    except ReportError as error:
        end(ExitCode.USAGE, str(error), as_json)
    raise typer.Exit(code)


@app.command(context_settings={"ignore_unknown_options": True})
def supervise(
    name: Annotated[str, typer.Argument(help="One supervisor a name; a second start of it does nothing.")],
    command: Annotated[list[str], typer.Argument(help="After `--`: the command and its arguments.")],
    log: Annotated[Path | None, typer.Option(help="Where its output goes; default: this terminal.")] = None,
    run_dir: Annotated[Path, typer.Option(help="Where names are held.")] = Path.home() / ".cache/isthmus/run",
    detach: Annotated[bool, typer.Option("--detach", help="Go on in the background; wants --log.")] = False,
) -> None:
    """Keep COMMAND running: start it again when it fails, unless trying again cannot help."""
    from deploy.supervise import AlreadySupervised, CannotSupervise
    from deploy.supervise import supervise as keep

    if detach and log is None:
        raise typer.BadParameter("found --detach without --log FILE, required a place for what it says")
    try:
        code = keep(name, command, run_dir, log, detach)
    except AlreadySupervised as held:
        typer.echo(str(held))
        return
    except CannotSupervise as error:
        end(ExitCode.USAGE, str(error), as_json=False)
    raise typer.Exit(code if code >= 0 else 128 - code)


def main() -> None:
    app()


if __name__ == "__main__":
    main()

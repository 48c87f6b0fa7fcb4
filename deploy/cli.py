"""The `deploy` command. Refuses to know more than how programs are started and what they print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from deploy.local import LinkOptions, LocalOptions
from deploy.processes import ProcessFailed

app = typer.Typer(
    help="Start whole runs: coordinator, workers and links, each by its own command.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


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
    backend: Annotated[
        Literal["relay", "switch"],
        typer.Option(
            help="relay: needs no privilege. switch: real TCP over network namespaces; Linux, root or user "
            "namespaces; tensors go unencrypted between addresses that exist on this machine only."
        ),
    ] = "relay",
    delay_scale: Annotated[float, typer.Option(min=0.0, help="Multiplies the trace's delays.")] = 1.0,
    bandwidth_scale: Annotated[
        float, typer.Option(min=1e-9, help="Multiplies the trace's bandwidths.")
    ] = 1.0,
    window_bytes: Annotated[
        int, typer.Option(min=0, help="Window of one TCP flow (rate = window / round trip); 0: unlimited.")
    ] = 0,
    state_dir: Annotated[
        Path, typer.Option(help="Where the run keeps its state.", envvar="ISTHMUS_STATE_DIR")
    ] = Path("runs/local"),
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint.")] = False,
    fresh: Annotated[bool, typer.Option(help="Forget the run that --state-dir holds.")] = False,
    report: Annotated[Path | None, typer.Option(help="Write the report here.")] = None,
    export: Annotated[
        Path | None, typer.Option(help="Write the trained model here in Hugging Face's layout.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Torch threads of each worker.")] = 1,
    streams: Annotated[int, typer.Option(min=1, help="Parallel streams of each link.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, no progress bar.")] = False,
) -> None:
    """Train JOB on this machine: a coordinator, WORKERS processes, and links shaped like a trace's."""
    from deploy.run_local import run_local

    if backend == "switch" and links is None:
        raise typer.BadParameter("found switch without --links TRACE, required the links to be like")
    options = LocalOptions(
        workers=workers,
        links=LinkOptions(links, backend, delay_scale, bandwidth_scale, window_bytes),
        state_dir=state_dir,
        resume=resume,
        threads=threads,
        streams=streams,
    )
    try:
        code = run_local(job, options, fresh=fresh, report=report, export=export, as_json=as_json)
    except ProcessFailed as failure:
        typer.echo(f"error: {failure}", err=True)
        raise typer.Exit(1) from None
    raise typer.Exit(code)


def main() -> None:
    app()


if __name__ == "__main__":
    main()

"""The `deploy ray` commands. Ray is imported only by those that talk to a running cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from deploy.job_file import read_job
from deploy.on_ray.clouds import CloudError
from deploy.processes import ProcessFailed
from scheduler.exit_codes import ExitCode
from scheduler.job import JobSpec

app = typer.Typer(
    help="Isthmus on Ray: rent machines in regions, or run on a cluster that is there.",
    no_args_is_help=True,
    add_completion=False,
)
Job = Annotated[Path, typer.Argument(help="The job file.", exists=True, dir_okay=False)]
Address = Annotated[
    str, typer.Option(help="The running cluster: auto, or ray://HOST:10001.", envvar="RAY_ADDRESS")
]
Name = Annotated[str, typer.Option(help="Of the run on the cluster; several can run beside each other.")]


def _job(path: Path) -> JobSpec:
    try:
        return read_job(path)
    except ProcessFailed as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.code) from None


@app.command()
def generate(
    job: Job,
    coordinator: Annotated[
        str, typer.Option(help="HOST:PORT of `coordinator start`, as every region reaches it.")
    ],
    token_file: Annotated[Path, typer.Option(help="The coordinator's token.", exists=True, dir_okay=False)],
    at: Annotated[
        list[str] | None,
        typer.Option(help="CLOUD/REGION:GPU=WORKERS, like aws/us-west-2:a10=4; repeated."),
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(help="Instead of --at: a plan (`sim run --json`) made over --trace.")
    ] = None,
    trace: Annotated[str | None, typer.Option(help="With --plan: the trace, by name or file.")] = None,
    gpu: Annotated[str, typer.Option(help="With --plan: the accelerator of every place.")] = "a10",
    hosts: Annotated[
        list[str] | None,
        typer.Option(help="SITE:HEAD,HOST,...: machines that are there, reached over ssh; repeated."),
    ] = None,
    ssh_user: Annotated[str, typer.Option(help="With --hosts.")] = "ubuntu",
    install: Annotated[
        str, typer.Option(help="What pip installs on them: a requirement, or a wheel's path with extras.")
    ] = "isthmus[worker]",
    ca: Annotated[
        Path | None,
        typer.Option(help="The CA of the coordinator's certificate.", exists=True),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Without --ca: let token and tensors travel unencrypted.")
    ] = False,
    data_dir: Annotated[
        Path | None, typer.Option(help="Copied to every machine: what the job's paths are relative to.")
    ] = None,
    streams: Annotated[int, typer.Option(min=1, max=64, help="Parallel streams of each link.")] = 4,
    spot: Annotated[bool, typer.Option("--spot", help="Rent machines that may be taken back.")] = False,
    gcp_project: Annotated[str, typer.Option(help="Google's project id.")] = "",
    out: Annotated[Path, typer.Option(help="Where the files are written.")] = Path("clusters"),
) -> None:
    """Write a Ray cluster launch config for every region; `ray up FILE` then rents and joins its machines."""
    from deploy.on_ray.generate import Wanted, write

    spec = _job(job)
    if ca is None and not insecure:
        typer.echo(
            "error: found no --ca, required the CA of the coordinator's certificate (`coordinator certs`), "
            "or --insecure on a network that is private already",
            err=True,
        )
        raise typer.Exit(int(ExitCode.INSECURE_BIND))
    wanted = Wanted(
        spec.name, coordinator, token_file, install, tuple(at or ()), plan, trace, gpu, tuple(hosts or ()),
        ssh_user, ca, data_dir, streams, spot, gcp_project,
    )  # fmt: skip
    try:
        written = write(wanted, out)
    except (CloudError, OSError, ValueError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(int(ExitCode.USAGE)) from None
    for path, workers in written:
        typer.echo(f"{path}: {workers} worker{'s' if workers != 1 else ''}; ray up {path}")


@app.command()
def launch(
    job: Job,
    workers: Annotated[
        list[str],
        typer.Option(help="N, or N@REGION (nodes with the resource region:REGION); repeated."),
    ],
    address: Address = "auto",
    name: Name = "isthmus",
    gpus: Annotated[float, typer.Option(min=0, help="GPUs of each worker; 0: computes on cores.")] = 0,
    cpus: Annotated[float, typer.Option(min=0, help="CPUs that each worker takes of its node.")] = 1,
    state_dir: Annotated[
        Path, typer.Option(help="Of the coordinator, on its node; on shared storage it survives the node.")
    ] = Path("runs/ray"),
    data_dir: Annotated[
        Path | None, typer.Option(help="On every node: what the job's paths are relative to.")
    ] = None,
    streams: Annotated[int, typer.Option(min=1, max=64, help="Parallel streams of each link.")] = 2,
    detach: Annotated[bool, typer.Option("--detach", help="Leave it; see `deploy ray status`.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Run JOB on a Ray cluster: a coordinator and workers as actors, in placement groups."""
    from deploy.on_ray.launch import Launch, LaunchFailed, parse_workers, run

    _job(job)
    try:
        wanted = Launch(
            job, parse_workers(workers), name, gpus, cpus, state_dir, data_dir or job.resolve().parent,
            streams,
        )  # fmt: skip
        code = run(wanted, address, detach=detach, as_json=as_json)
    except LaunchFailed as failure:
        typer.echo(f"error: {failure}", err=True)
        raise typer.Exit(failure.code) from None
    raise typer.Exit(code)


@app.command()
def status(
    address: Address = "auto",
    name: Name = "isthmus",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """What the run's actors do, and what the coordinator says of the run."""
    from deploy.on_ray.launch import LaunchFailed, status_of

    try:
        found = status_of(name, address)
    except LaunchFailed as failure:
        typer.echo(f"error: {failure}", err=True)
        raise typer.Exit(failure.code) from None
    if as_json:
        typer.echo(json.dumps(found))
        return
    for actor in found["actors"]:
        typer.echo(f"{actor['name']:24} {actor['state']:10} node {actor['node']}  starts {actor['starts']}")
    if found["last"]:
        typer.echo(json.dumps(found["last"]))


@app.command()
def down(
    address: Address = "auto",
    name: Name = "isthmus",
    now: Annotated[bool, typer.Option("--now", help="Do not wait for the step and the checkpoint.")] = False,
) -> None:
    """End the run: finish the step, save, and give actors and placement group back."""
    from deploy.on_ray.launch import LaunchFailed, end

    try:
        ended = end(name, address, now=now)
    except LaunchFailed as failure:
        typer.echo(f"error: {failure}", err=True)
        raise typer.Exit(failure.code) from None
    typer.echo(f"{name}: {ended} actors ended")

"""The `coordinator` command: each of its commands from the module that knows it.

Two that know only a job's file and the exit codes stand here.
"""

from __future__ import annotations

import json

import typer

from scheduler.exit_codes import EXITS

from .access import certs, tokens_app
from .asking import drain, status, stop
from .options import AsJson, JobFile, read_job
from .proving import ledger
from .seeing import dashboard as open_dashboard
from .seeing import runs
from .starting import default_min_workers, start

app = typer.Typer(
    help="Take a job, gather workers, plan, and drive the training. Exit codes: `coordinator exit-codes`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(tokens_app, name="tokens")
app.command("dashboard")(open_dashboard)
for command in (start, status, drain, stop, certs, runs, ledger):
    app.command()(command)


@app.command()
def validate(job_file: JobFile, as_json: AsJson = False) -> None:
    """Check JOB.yaml without starting anything."""
    job = read_job(job_file, as_json)
    workers, _ = default_min_workers(job)
    if as_json:
        event = {"event": "valid", "job": job.name, "layers": job.n_layers, "steps": job.steps}
        typer.echo(json.dumps(event | {"tokens_per_step": job.global_batch * job.sequence_length}))
        return
    typer.echo(
        f"{job_file}: valid. {job.name}: {job.n_layers} layers (embedding and head included), "
        f"{job.steps} steps of {job.global_batch} x {job.sequence_length} tokens, {workers} worker(s) or more"
    )


@app.command("exit-codes")
def exit_codes(as_json: AsJson = False) -> None:
    """List the exit codes of all commands, with what to do."""
    for entry in EXITS.values():
        if as_json:
            body = {"code": int(entry.code), "name": entry.code.name, "meaning": entry.meaning}
            typer.echo(json.dumps(body | {"remedy": entry.remedy}))
        else:
            typer.echo(f"{int(entry.code):>4}  {entry.code.name}: {entry.meaning} {entry.remedy}")


def main() -> None:
    """Entry of the `coordinator` command."""
    app()


if __name__ == "__main__":
    main()

"""`coordinator start`: its options, checked before anything is opened, and the run that they ask for.

What a run does is `run.py`; what it is shown as, `progress.py`.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from protos.ending import end
from protos.log_lines import LogLines
from protos.tls import TlsError, is_loopback
from scheduler.exit_codes import EXITS, ExitCode
from scheduler.job import JobSpec
from scheduler.lease import LEASE_S
from scheduler.liveness import SILENCE
from scheduler.plan import Plan
from scheduler.plan_text import plan_of_document
from scheduler.reasons import reason_of

from .certs import ServerTls, server_tls, tls_files
from .options import (
    DEFAULT_STATE_DIR,
    AsJson,
    JobFile,
    LogFormatOption,
    StateDir,
    TokenFile,
    read_job,
    split_address,
)
from .outlets.choose import Wanted, with_outlets
from .outlets.seam import OutletMissing
from .planning import BETWEEN_STEPS, given, make
from .progress import Bar, JsonLines, JsonLog, Show
from .resume import OpenError, ended, open_run, token
from .run import EVERYWHERE, PortInUse, RunOptions, run
from .seeing import DashboardPortInUse, DashboardRefused, Page, run_with_dashboard
from .standing_by import holder_name, wait_until_free
from .state_dir import StoreError, keep_elsewhere


def _read_plan(path: Path, as_json: bool) -> Plan:
    try:
        return plan_of_document(json.loads(path.read_text(encoding="utf-8")), str(path))
    except (OSError, ValueError) as e:  # a plan that cannot be is a ValueError too
        end(ExitCode.USAGE, f"--plan {path}: {reason_of(e)}", as_json)


def _require_safe(bind: str, tls: ServerTls | None, insecure: bool, as_json: bool) -> None:
    host, _ = split_address(bind, as_json)
    if tls is not None or insecure or is_loopback(host):
        return
    end(
        ExitCode.INSECURE_BIND,
        f"--bind: found {bind}, which other machines can reach, and no certificate: token, job, checkpoints "
        "and keys would travel in the clear. Make one (`coordinator certs --host NAME`), give --tls-cert "
        "and --tls-key, or pass --insecure on a network that is private already",
        as_json,
    )


def default_min_workers(job: JobSpec) -> tuple[int, str]:
    """How many workers to wait for when nobody said, and why."""
    if job.asked_shape is None:
        return 1, "parallelism is `auto`: begins with the first worker; pass --min-workers N to wait for N"
    stages, replicas = job.asked_shape
    return stages * replicas, f"waits for {stages * replicas} workers: {stages} stages x {replicas} replicas"


def _show(as_json: bool, logs: LogLines | None) -> Show:
    if logs is not None:
        logs.take_over_logging()
        return JsonLog(logs)
    return JsonLines() if as_json else Bar(Console(soft_wrap=True))


def start(
    job_file: JobFile,
    bind: Annotated[
        str, typer.Option(help="HOST:PORT to listen on; port 0 takes a free one.", envvar="ISTHMUS_BIND")
    ] = "127.0.0.1:29520",
    min_workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Begin with this many workers. Default: stages x replicas of the job; 1 for `auto`.",
            envvar="ISTHMUS_MIN_WORKERS",
        ),
    ] = None,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue the run of the state directory.", envvar="ISTHMUS_RESUME"),
    ] = False,
    resume_step: Annotated[
        int | None,
        typer.Option(min=0, help="Continue from the checkpoint of this step instead of the last."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Gather, measure, print the plan, release the workers, end.")
    ] = False,
    wait_for_workers: Annotated[
        float,
        typer.Option(
            min=0,
            help="Seconds that a run which lost workers waits for others, if it cannot go on without.",
            envvar="ISTHMUS_WAIT_FOR_WORKERS",
        ),
    ] = 300.0,
    silence: Annotated[float | None, typer.Option(min=0.1, hidden=True)] = None,
    look_every: Annotated[
        float,
        typer.Option(
            min=0,
            help="Seconds between looks for a faster plan while the run goes on, with workers that joined "
            "since; 0: none.",
            envvar="ISTHMUS_LOOK_EVERY",
        ),
    ] = 30.0,
    margin: Annotated[float | None, typer.Option(min=0, max=0.9, hidden=True)] = None,
    plan_file: Annotated[
        Path | None,
        typer.Option("--plan", help="Run this plan (as `sim run --json` prints it), whatever is measured."),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            help="Certificate to show, as PEM; default: what `coordinator certs` made, if it did.",
            envvar="ISTHMUS_TLS_CERT",
        ),
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(help="The certificate's key, as PEM.", envvar="ISTHMUS_TLS_KEY")
    ] = None,
    relay: Annotated[
        str,
        typer.Option(
            help="HOST:PORT of a relay, for workers that cannot reach each other: a `worker relay`, or what "
            "leads to --relay-bind.",
            envvar="ISTHMUS_RELAY",
        ),
    ] = "",
    relay_bind: Annotated[
        str,
        typer.Option(help="Run a relay here, at this HOST:PORT.", envvar="ISTHMUS_COORDINATOR_RELAY_BIND"),
    ] = "",
    store: Annotated[
        str,
        typer.Option(
            help="Where the run's history is, if not in the state directory: a SQLite file or a "
            "postgresql:// URL that another coordinator reaches too; whoever drives the run has its lease.",
            envvar="ISTHMUS_STORE",
        ),
    ] = "",
    standby: Annotated[
        bool,
        typer.Option("--standby", help="Wait until whoever drives the run of --store is gone; then do so."),
    ] = False,
    lease: Annotated[float, typer.Option(min=0.5, hidden=True)] = LEASE_S,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure",
            help="Allow --bind beyond this machine without a certificate: whoever reads the network reads "
            "the token, and with it can join, take the weights and end the run.",
            envvar="ISTHMUS_INSECURE",
        ),
    ] = False,
    dashboard: Annotated[
        str,
        typer.Option(
            help="HOST:PORT of a page that shows the run; port 0 takes a free one. Beyond this machine it "
            "asks for the token of the address that is printed.",
            envvar="ISTHMUS_DASHBOARD",
        ),
    ] = "",
    runs_dir: Annotated[
        Path | None,
        typer.Option(
            "--runs",
            help="The page also opens and compares the runs below this directory. Default: those beside "
            "--state-dir; none where other machines reach the page.",
            envvar="ISTHMUS_RUNS",
            file_okay=False,
        ),
    ] = None,
    dashboard_valid: Annotated[
        str,
        typer.Option(
            help="How long the token of the page's address holds: 90m, 12h, 7d. `coordinator tokens` makes "
            "others (--for dashboard), lists and revokes them.",
            envvar="ISTHMUS_DASHBOARD_VALID",
        ),
    ] = "7d",
    tensorboard: Annotated[
        Path | None, typer.Option(help="Write the run's curves for TensorBoard into this directory.")
    ] = None,
    wandb: Annotated[str, typer.Option(help="Send the run's curves to this Weights & Biases project.")] = "",
    otel: Annotated[
        bool,
        typer.Option("--otel", help="Send recorded steps as traces to OTEL_EXPORTER_OTLP_ENDPOINT."),
    ] = False,
    log_format: LogFormatOption = "text",
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Start the run of JOB.yaml and wait for workers.

    The first Ctrl-C finishes the step, saves and ends; the second ends at once.
    """
    logs = LogLines(time.time) if log_format == "json" else None
    as_json = as_json or logs is not None
    job = read_job(job_file, as_json)
    try:
        tls = server_tls(tls_cert, tls_key, state_dir)
    except TlsError as e:
        end(ExitCode.TLS, str(e), as_json)
    _require_safe(bind, tls, insecure, as_json)
    if relay:
        split_address(relay, as_json, "--relay")
    if relay_bind and split_address(relay_bind, as_json, "--relay-bind")[0] in EVERYWHERE and not relay:
        end(
            ExitCode.USAGE,
            f"--relay-bind: found {relay_bind}, which is no address to connect to; required "
            "--relay HOST:PORT, where workers reach it",
            as_json,
        )
    planner = given(_read_plan(plan_file, as_json)) if plan_file else make
    needed, why = (min_workers, "") if min_workers is not None else default_min_workers(job)
    show = _show(as_json, logs)
    holder = holder_name() if store else ""
    try:
        if store:
            keep_elsewhere(state_dir, store)
        elif standby:
            end(ExitCode.USAGE, "--standby: found no --store, required one that both reach", as_json)
        if standby:
            if wait_until_free(state_dir, lease, show, time.time, time.sleep) == "over":
                typer.echo("the run is over: nothing is left to take over", err=True)
                raise typer.Exit(int(ExitCode.OK))
            resume = True
        opened = open_run(
            state_dir, job, resume=resume, resume_step=resume_step, now_s=time.time(), holder=holder,
            lease_s=lease,
        )  # fmt: skip
    except OpenError as e:
        end(e.code, str(e), as_json)
    except StoreError as e:
        end(ExitCode.STATE_DIR, str(e), as_json)
    except KeyboardInterrupt:
        raise typer.Exit(int(ExitCode.INTERRUPTED)) from None
    try:
        if opened.over:
            show(ended(opened))
            raise typer.Exit(int(ExitCode.OK))
        secret = token(state_dir, token_file)
        if why:
            opened.notes += (why,)
        show = with_outlets(show, Wanted(tensorboard, wandb, otel), opened.state_dir)
        options = RunOptions(
            bind=bind,
            min_workers=needed,
            dry_run=dry_run,
            tls=tls,
            relay=relay,
            relay_bind=relay_bind,
            regather_s=wait_for_workers,
            reconsider_s=look_every,
            lease_s=lease,
        )
        if margin is not None:
            options = replace(options, patience=replace(BETWEEN_STEPS, margin=margin))
        if silence is not None:
            patience = replace(SILENCE, floor_s=silence, unknown_s=silence)
            beats_s = min(options.heartbeat_s, silence / 3)
            options = replace(options, silence=patience, heartbeat_s=beats_s)
        with show:
            if dashboard:
                files = tls_files(tls_cert, tls_key, state_dir) if tls is not None else None
                page = Page(dashboard, dashboard_valid, files, insecure, runs_dir)
                code = run_with_dashboard(
                    page, opened.state_dir, job.name, resume, show,
                    lambda say: run(job, opened, options, secret, say, planner),
                )  # fmt: skip
            else:
                code = asyncio.run(run(job, opened, options, secret, show, planner))
    except OpenError as e:
        end(e.code, str(e), as_json)
    except (PortInUse, DashboardPortInUse) as e:
        end(ExitCode.PORT_IN_USE, str(e), as_json)
    except DashboardRefused as e:
        end(e.code, str(e), as_json)
    except OutletMissing as e:
        end(ExitCode.USAGE, str(e), as_json)
    finally:
        opened.close()
    if code is not ExitCode.OK and not as_json:
        typer.echo(f"exit code {int(code)} ({code.name}): {EXITS[code].remedy}", err=True)
    raise typer.Exit(int(code))

"""`sim emulate`: real runs beside the simulator's. Refuses to know how either is made.

The simulator starts nothing and knows neither coordinator nor worker, so this command of it stands here and
is found by its entry point (`isthmus.sim_commands` in pyproject.toml).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from deploy.emulate import Emulation, outcomes, table
from deploy.emulate_report import write_emulated
from deploy.job_file import read_job
from deploy.options import ChosenBackend
from deploy.processes import ProcessFailed
from protos.ending import end
from scheduler.exit_codes import from_wire
from sim.refusing import refuse
from sim.report import make_directory


def emulate(
    job: Annotated[Path, typer.Argument(help="The job file; its `steps` are what each run does.")],
    trace: Annotated[list[str], typer.Option(help="A trace that shapes the links; repeated.")],
    placements: Annotated[int, typer.Option(min=1, help="Placements to run on each trace.")] = 5,
    workers: Annotated[int, typer.Option(min=2, help="Worker processes.")] = 4,
    backend: ChosenBackend = "relay",
    window_bytes: Annotated[int, typer.Option(min=0, help="Window of one TCP flow; 0: unlimited.")] = 0,
    delay_scale: Annotated[float, typer.Option(min=0.0, help="Multiplies the traces' delays.")] = 1.0,
    bandwidth_scale: Annotated[
        float, typer.Option(min=1e-9, help="Multiplies the traces' bandwidths.")
    ] = 1.0,
    state_dir: Annotated[Path, typer.Option(help="Where the runs keep their state.")] = Path("runs/emulate"),
    report: Annotated[Path | None, typer.Option(help="Write a page of predicted and measured here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Hold the simulator against real runs: JOB on WORKERS behind links shaped like TRACE, predicted and
    measured, for several placements."""
    found = []
    try:
        spec = read_job(job)
        if report is not None:
            make_directory(report)
        emulation = Emulation(
            job,
            tuple(trace),
            placements,
            workers,
            backend,
            window_bytes,
            delay_scale,
            bandwidth_scale,
            state_dir,
        )
        for o in outcomes(emulation, spec):
            found.append(o)
            line = {"trace": o.trace, "placement": o.placement, "predicted_s": o.predicted_s}
            line |= {"measured_s": o.measured_s, "error": o.error, "kinds": o.kinds}
            typer.echo(json.dumps(line) if as_json else table([o]).splitlines()[1])
        if report is not None:
            typer.echo(f"report: {write_emulated(report, found)}", err=True)
    except ProcessFailed as failure:
        end(from_wire(failure.code), str(failure), as_json)
    except (OSError, ValueError) as error:
        refuse("error", error)
    if not as_json:
        typer.echo("\n" + table(found))

"""`sim sweep`: many simulations on all cores, or on a Ray cluster, into one file of JSON lines."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from sim.refusing import refuse
from sim.report import make_directory, write_report
from sim.spread import HERE, spread
from sim.sweep import append, done_before, outcome, read_sweep, results
from sim.sweep_report import contents


def sweep(
    spec: Annotated[Path, typer.Argument(help="The specification (YAML): out, base, grid, points.")],
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes; default: as many as there are cores.")
    ] = None,
    ray: Annotated[
        str | None, typer.Option(help=f"Compute over a Ray cluster: its address, auto or {HERE}.")
    ] = None,
    report_dir: Annotated[
        Path | None, typer.Option("--report", help="Write a page of all the file's results here.")
    ] = None,
) -> None:
    """Run every simulation of SPEC that its results file does not hold yet; stop it and go on at will."""
    try:
        if report_dir is not None:
            make_directory(report_dir)
        found = read_sweep(spec)
        before = done_before(found.out)
        left = [p for p in found.points if p.key not in before]
        failed = 0
        on_cores = 1 if ray else processes or os.cpu_count() or 1
        with (
            spread(on_cores, ray) as map_tasks,
            Progress(console=Console(stderr=True), transient=True) as bar,
        ):
            lines = append(found.out, map_tasks(outcome, left))
            for line in bar.track(lines, total=len(left), description="simulating"):
                failed += "error" in line
        if report_dir is not None:
            keys = {p.key for p in found.points}
            lines_now = [x for x in results(found.out) if x["key"] in keys]
            page = write_report(report_dir, contents(f"Swept: {spec.stem}", lines_now))
            typer.echo(f"report: {page}", err=True)
    except (OSError, ValueError) as e:
        refuse("sim sweep", e)
    known = len(found.points) - len(left)
    typer.echo(f"{len(left)} computed, {known} known before, {failed} without a result: {found.out}")

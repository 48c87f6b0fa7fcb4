"""`deploy local` from start to report: run the cluster, show it, then let the model speak.

Reads the run back from its state directory like anybody else; decides nothing about training.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console

from coordinator.history import read_history
from coordinator.progress import Bar, JsonLines, Show
from deploy.job_file import read_job
from deploy.local import LocalCluster, LocalOptions, forget
from deploy.processes import Event, ProcessFailed, command
from deploy.report import write_report
from scheduler.exit_codes import ExitCode, describe
from scheduler.job import JobSpec
from sim.report import make_directory

SAMPLE_TOKENS = 200


def run_local(
    job: Path, options: LocalOptions, *, fresh: bool, report: Path | None, export: Path | None, as_json: bool
) -> int:
    """Train `job` on this machine and return the exit code. Raises ProcessFailed when a part cannot start,
    TraceError for links of no trace, ReportError for a report that cannot be written."""
    console = Console(stderr=False)
    spec = read_job(job)
    if report is not None:
        make_directory(report)
    if fresh:
        forget(options.state_dir)
    if options.links.backend == "switch" and not as_json:
        console.print(
            "workers run in network namespaces; their tensors go unencrypted, on this machine only",
            soft_wrap=True,
        )
    show: Show = JsonLines() if as_json else Bar(console)
    checkpoint = ""
    with LocalCluster(job, options) as cluster, interrupts_drain(cluster), show:
        for event in cluster.events():
            show(event)
            checkpoint = _checkpoint(event) or checkpoint
        code = cluster.wait()
    if code != ExitCode.OK and not as_json:
        console.print(f"{describe(code)}\nlogs: {options.state_dir / 'logs'}", markup=False, soft_wrap=True)
    sample, failed = "", None
    if checkpoint and code == ExitCode.OK:
        try:
            sample = _speak(spec, checkpoint, cluster.data_dir, export)
        except ProcessFailed as failure:  # the run itself is worth its report
            failed = failure
    if sample:
        show({"event": "generated", "name": "the model writes", "text": sample})
    if report is not None:
        page = write_report(read_history(options.state_dir), report, options, sample)
        if as_json:
            show({"event": "report", "path": str(page)})
        else:
            console.print(
                f"checkpoint: {checkpoint or 'none'}\nreport: {page}", markup=False, highlight=False
            )
    if failed is not None:
        raise failed
    if export is not None and code == ExitCode.OK and not as_json:
        console.print(f"model for transformers: {export}", markup=False, highlight=False)
    return code


def _speak(job: JobSpec, checkpoint: str, data_dir: Path, export: Path | None) -> str:
    """Export the model if asked to; returns what it writes after the job's prompt ('': the job has none)."""
    relative = ("--data-dir", str(data_dir))
    if export is not None:
        _worker("export", checkpoint, str(export), *relative)
    if not job.prompt:
        return ""
    length = ("--max-new-tokens", str(SAMPLE_TOKENS))
    return _worker("generate", checkpoint, "--prompt", job.prompt, *length, *relative)


def _checkpoint(event: Event) -> str:
    """The path of a checkpoint that the event tells of, or ''."""
    if event["event"] == "checkpoint":
        return str(event["path"])
    return str(event.get("checkpoint") or "") if event["event"] == "finished" else ""


def _worker(name: str, *arguments: str) -> str:
    """Run a worker command to its end and return what it printed. Raises ProcessFailed with its words."""
    done = subprocess.run(command("worker", name, *arguments), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().removeprefix("error: ")
        raise ProcessFailed(f"worker {name}: {said}", done.returncode)
    return done.stdout.strip()


@contextmanager
def interrupts_drain(cluster: LocalCluster) -> Iterator[None]:
    """First Ctrl-C or SIGTERM drains the run; the second ends everything."""
    seen = 0

    def on_signal(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 (the signature is Python's)
        nonlocal seen
        seen += 1
        if seen > 1:
            raise KeyboardInterrupt
        cluster.drain()

    before = {s: signal.signal(s, on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

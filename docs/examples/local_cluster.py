"""Train on this machine with real processes: a coordinator, workers, and links like those between cities."""

from pathlib import Path

from deploy.api import History, LocalCluster
from scheduler.job import JobSpec, ParallelismSpec
from sim.api import load_job


def train(
    job: Path | JobSpec,
    workers: int,
    links: str | None,
    state_dir: Path | None = None,
    data_dir: Path | None = None,
) -> History:
    """Train `job` to its end, a line a step, and return what the run has written down."""
    with LocalCluster(job, workers=workers, links=links, state_dir=state_dir, data_dir=data_dir) as run:
        for step in run.steps():
            print(f"step {step.step} of {step.steps}: loss {step.loss:.3f}, {step.step_s:.2f} s")
        print("checkpoint:", run.checkpoint())
        return run.history()


if __name__ == "__main__":
    tiny = load_job("jobs/tiny.yaml")
    in_two = tiny.model_copy(update={"parallelism": ParallelismSpec(stages=2)})
    history = train(in_two, workers=2, links="four_cities", data_dir=Path("jobs"))
    print("held out:", [round(e.loss, 3) for e in history.evals])
    print(f"on the wire: {history.sent_bytes:,} bytes")

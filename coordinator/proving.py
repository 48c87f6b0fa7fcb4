"""`coordinator ledger`: proves from a run's store that each sample of each epoch was used exactly once.

Reads the store alone, while the run goes on or long after; what a proof is, is `scheduler/ledger_proof.py`'s.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import typer

from protos.ending import end
from scheduler.exit_codes import ExitCode
from scheduler.job import job_from_json
from scheduler.ledger_proof import Entry, Proof, prove
from scheduler.plan_text import plan_of_document

from .measurements import read_measurements
from .options import DEFAULT_STATE_DIR, AsJson, StateDir
from .state_dir import StoreError
from .store import Store


def proof_of(state_dir: Path) -> Proof:
    """Raises StoreError where there is no run, or none that has begun."""
    with Store(state_dir, read_only=True) as store:
        run = store.run()
        if run is None:
            raise StoreError(f"{state_dir}: found no run, required the state directory of one")
        rows = store.rows(
            "SELECT s.attempt, s.step, s.plan_version, m.first, m.stop FROM steps s LEFT JOIN samples m"
            " ON m.attempt = s.attempt AND m.step = s.step AND m.discarded = 0"
            " WHERE s.discarded = 0 ORDER BY s.step, s.attempt"
        )
        alone = store.rows(
            "SELECT m.attempt, m.step, m.first, m.stop FROM samples m LEFT JOIN steps s"
            " ON m.attempt = s.attempt AND m.step = s.step AND s.discarded = 0"
            " WHERE m.discarded = 0 AND s.step IS NULL"
        )
        plans = {
            r["version"]: plan_of_document(json.loads(r["plan"]), "a plan of the run")
            for r in store.rows("SELECT version, plan FROM plans")
        }
    job = job_from_json(run["job_json"], str(state_dir))
    try:
        n_samples = read_measurements(state_dir).model.visits.n_samples
    except FileNotFoundError as error:
        raise StoreError(f"{state_dir}: found no plan yet, required a run that has begun") from error
    entries = [Entry(r["attempt"], r["step"], r["plan_version"], r["first"], r["stop"]) for r in rows]
    proof = prove(entries, plans, job.global_batch, job.seed, n_samples)
    stray = tuple(f"step {r['step']} consumed samples and is not there itself" for r in alone)
    return Proof(proof.steps, proof.attempts, proof.epochs, (*stray, *proof.defects))


def ledger(state_dir: StateDir = DEFAULT_STATE_DIR, as_json: AsJson = False) -> None:
    """Prove that each sample of each epoch was used exactly once, from what the run wrote down."""
    try:
        proof = proof_of(state_dir)
    except StoreError as error:
        end(ExitCode.STATE_DIR, str(error), as_json)
    if as_json:
        typer.echo(json.dumps({"event": "ledger", "holds": proof.holds, **asdict(proof)}))
    else:
        typer.echo(_text(proof))
    raise typer.Exit(int(ExitCode.OK if proof.holds else ExitCode.LEDGER))


def _text(proof: Proof) -> str:
    lines = [f"{proof.steps} steps count, of {proof.attempts} attempts"]
    for e in proof.epochs:
        how = "complete" if e.complete else "under way"
        lines.append(f"epoch {e.epoch} ({how}): {e.once:,} of {e.of:,} samples used exactly once")
    lines += [f"defect: {x}" for x in proof.defects]
    lines.append("the ledger is exact" if proof.holds else "the ledger is NOT exact")
    return "\n".join(lines)

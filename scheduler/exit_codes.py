"""The numbered ways in which a command of Isthmus ends, each with its meaning and remedy.

Shared by every command, so that a script can tell a wrong token from a full disk. Also
travels on the wire (`Stop.code`, `Failed.code`). Knows nothing of who raises which.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class ExitCode(IntEnum):
    """One number a cause. Numbers are never reused; 2 is what command-line libraries use for usage."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    JOB_INVALID = 3
    DATA = 4
    PORT_IN_USE = 5
    UNREACHABLE = 6
    PROTOCOL_VERSION = 7
    TOKEN = 8
    NAME_TAKEN = 9
    PEER_UNREACHABLE = 10
    WORKER_LOST = 11
    WORKER_FAILED = 12
    CHECKPOINT_CORRUPT = 13
    CHECKPOINT_MISSING = 14
    CHECKPOINT_WRITE = 15
    NO_PLAN = 16
    WORKERS_DISAGREE = 17
    DIVERGED = 18
    INSECURE_BIND = 19
    STATE_DIR = 20
    STALLED = 21
    COORDINATOR_LOST = 22
    DEVICE = 23
    MODEL = 24
    RUN_OVER = 25
    NO_NAMESPACES = 26
    TLS = 27
    QUARANTINED = 28
    LEDGER = 29
    SUPERSEDED = 30
    INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Exit:
    """What a number means and what a person does about it."""

    code: ExitCode
    meaning: str
    remedy: str


_TABLE = (
    Exit(ExitCode.OK, "The command did what was asked.", "Nothing."),
    Exit(ExitCode.INTERNAL, "A defect in Isthmus.", "Report it with the traceback."),
    Exit(ExitCode.USAGE, "The command line is wrong.", "Read the command's --help."),
    Exit(ExitCode.JOB_INVALID, "The job file has an error.", "Correct the line and key that are named."),
    Exit(ExitCode.DATA, "Training data is missing, empty, unreadable or too short.",
         "Check `data.files` of the job, and that every worker has the files (--data-dir)."),
    Exit(ExitCode.PORT_IN_USE, "Another process listens on the address.",
         "Stop it, or give another --bind (port 0 takes a free one)."),
    Exit(ExitCode.UNREACHABLE, "No coordinator answers at the address.",
         "Check that it runs, the host and port, and firewalls between the two machines."),
    Exit(ExitCode.PROTOCOL_VERSION, "Worker and coordinator speak different protocol versions.",
         "Install the same version of isthmus on both."),
    Exit(ExitCode.TOKEN, "The token does not let this worker in.",
         "Copy the token file that the coordinator named, or have `coordinator tokens create` make one."),
    Exit(ExitCode.NAME_TAKEN, "Another live worker has this name.",
         "Give another --name, or stop the other."),
    Exit(ExitCode.PEER_UNREACHABLE, "Two workers cannot reach each other's data address.",
         "Open the port that is named, or set --advertise to an address the peer can reach."),
    Exit(ExitCode.WORKER_LOST, "The run lost a worker that it cannot go on without; its checkpoint is kept.",
         "Start with --resume; bring it back, or raise --wait-for-workers and let others join."),
    Exit(ExitCode.WORKER_FAILED, "A worker reported a failure it could not go on from.",
         "Read the reason; correct it there; start with --resume."),
    Exit(ExitCode.CHECKPOINT_CORRUPT, "A checkpoint's file is not what its manifest says.",
         "Restore the file, or choose an earlier checkpoint with --resume-step."),
    Exit(ExitCode.CHECKPOINT_MISSING, "There is nothing to resume.",
         "Check --state-dir, or start without --resume."),
    Exit(ExitCode.CHECKPOINT_WRITE, "The last checkpoint of the run could not be written.",
         "Free space in the state directory and start with --resume."),
    Exit(ExitCode.NO_PLAN, "The job cannot be placed on these workers.",
         "Add workers or memory, or make the model, the micro-batch or the number of stages smaller."),
    Exit(ExitCode.WORKERS_DISAGREE, "Workers see different data or build different models.",
         "Give all workers the same files and the same version of isthmus."),
    Exit(ExitCode.DIVERGED, "The loss is no longer a number.",
         "Lower the learning rate or set clip_norm, and resume from the last checkpoint."),
    Exit(ExitCode.INSECURE_BIND, "Leaving this machine without TLS was not allowed.",
         "Make certificates with `coordinator certs`, or pass --insecure on a network you trust."),
    Exit(ExitCode.STATE_DIR, "The state directory is in use, holds another run, or cannot be written.",
         "Give another --state-dir, or --resume to continue the run it holds."),
    Exit(ExitCode.STALLED, "A step took far longer than those before it.",
         "Look at the named workers' logs and links; start with --resume."),
    Exit(ExitCode.COORDINATOR_LOST, "The coordinator went away while the worker was a member.",
         "Start the coordinator with --resume, then join again; --rejoin-timeout waits longer."),
    Exit(ExitCode.DEVICE, "The worker's device is missing or out of memory.",
         "Check --device and --max-memory; a smaller micro-batch needs less."),
    Exit(ExitCode.MODEL, "The model's weights or configuration cannot be read.",
         "Check `model.weights` and `model.preset` of the job."),
    Exit(ExitCode.RUN_OVER, "The run has ended and takes no more workers.", "Start the coordinator again."),
    Exit(ExitCode.NO_NAMESPACES, "This machine or user cannot make the packet switch's namespaces.",
         "Run as root or allow user namespaces on Linux, or shape links by --backend relay."),
    Exit(ExitCode.TLS, "A certificate, its key or the authority does not fit.",
         "Make them with `coordinator certs`, and give workers its ca.pem by --ca."),
    Exit(ExitCode.QUARANTINED, "The worker's numbers were bad too often; it is not taken in any more.",
         "Test the machine's memory and device; the coordinator's log names the steps."),
    Exit(ExitCode.LEDGER, "The run's history does not prove that each sample was used exactly once.",
         "Read the defects; resume from a checkpoint before the first of them with --resume-step."),
    Exit(ExitCode.SUPERSEDED, "Another coordinator drives the run now, or the shared store is out of reach.",
         "Start this one again with --standby."),
    Exit(ExitCode.INTERRUPTED, "Stopped by a signal before it was done.",
         "Start with --resume to continue from the last checkpoint."),
)  # fmt: skip

EXITS: dict[ExitCode, Exit] = {e.code: e for e in _TABLE}


def describe(code: int) -> str:
    """`11 WORKER_LOST: what it means What to do` for a number, also for one that is not ours."""
    try:
        entry = EXITS[ExitCode(code)]
    except ValueError:
        return f"{code}: not one of Isthmus's exit codes"
    return f"{code} {entry.code.name}: {entry.meaning} {entry.remedy}"


def from_wire(code: int) -> ExitCode:
    """The code another process sent; a number of a later version reads as WORKER_FAILED, 0 likewise."""
    try:
        found = ExitCode(code)
    except ValueError:
        return ExitCode.WORKER_FAILED
    return ExitCode.WORKER_FAILED if found is ExitCode.OK else found

"""`python -m deploy.with_parent PID COMMAND...`: become COMMAND, and be killed when process PID ends.

A worker whose keeper was killed must not go on as a ghost that holds its name. Linux delivers the signal;
elsewhere COMMAND simply runs. Knows no command.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, argv = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it ended before we asked
            sys.exit(f"with_parent: process {parent} has ended already")
    os.execv(argv[0], argv)


if __name__ == "__main__":
    main()

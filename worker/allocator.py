"""Keeps memory that was freed, so that the next step finds it in the process.

glibc gives every block of some tens of MB back to the system when it is freed, and the next tensor of that
size faults its pages in again, one by one: decoding 34 MB took five times as long as the loop that decodes.
Knows the C library; refuses to know who allocates.
"""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""mallopt's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD."""
_NEVER = 2**31 - 1
"""More than any tensor here: mallopt takes an int."""


def keep_freed_memory() -> bool:
    """From now on this process keeps what it frees, so it stays as large as its largest step.

    False where the C library has no such setting (macOS, musl), and nothing is changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _NEVER)) and bool(mallopt(_TRIM_THRESHOLD, _NEVER))

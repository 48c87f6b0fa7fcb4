"""Keeps memory that was freed, so that the next step finds it in the process.

glibc gives every block of some tens of MB back to the system when it is freed, and the next tensor of that
size faults its pages in again, one by one: decoding 34 MB took five times as long as the loop that decodes.
Knows the C library; refuses to know who allocates.
"""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""mallopt's M_TRIM_THRESHOLD, M_MMAP_THRESHOLD and M_ARENA_MAX."""
_NEVER = 2**31 - 1
"""More than any tensor here: mallopt takes an int."""


def keep_freed_memory() -> bool:
    """From now on this process keeps what it frees, so it stays as large as its largest step.

    False where the C library has no such setting (macOS, musl), and nothing is changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_MMAP_THRESHOLD, _NEVER), (_TRIM_THRESHOLD, _NEVER), (_ARENA_MAX, 1))
    # One arena, for what a thread frees is else kept for that thread, and above 64 MB not at all.
    return all(bool(mallopt(which, value)) for which, value in settings)

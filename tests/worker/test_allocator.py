"""Freed memory stays in the process: counted in page faults, in a process of its own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

COUNT = """
import ctypes, resource, sys, threading
from worker.allocator import keep_freed_memory
assert sys.argv[1] == "gives back" or keep_freed_memory()
libc, size = ctypes.CDLL(None), 256 << 20
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes, libc.memset.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
def use():
    block = libc.malloc(size)
    libc.memset(block, 1, size)
    libc.free(block)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
lane = threading.Thread(target=use)
lane.start()
lane.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_a_block_that_was_freed_is_not_faulted_in_again_whichever_thread_wants_one() -> None:
    faults = {}
    for how in ("gives back", "keeps"):
        ran = subprocess.run([sys.executable, "-c", COUNT, how], capture_output=True, text=True, check=True)
        faults[how] = int(ran.stdout)
    assert faults["keeps"] < 1000 < faults["gives back"]  # of 65536 pages

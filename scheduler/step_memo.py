"""Pipelines that were replayed already: a search meets most of them again and again.

A pipeline's ends depend on the kinds of its devices, the cut and its share alone, so interchangeable
devices share an entry. Entries are found by a 64-bit hash and overwrite each other: the memory is fixed,
and a wrong guess, once in some billion searches, misleads a walk but no plan, which is priced anew.
Counts the work that was really done, so that effort can be shared out without a clock.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scheduler.compiled import kernel
from scheduler.step_kernels import Floats, Ints, Layout

SLOTS = 1 << 14
"""Entries of a memo; a power of two."""
_MIX, _STEP = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0x9E3779B97F4A7C15)


class Memo(NamedTuple):
    """What is known of pipelines, and the work done so far."""

    keys: NDArray[np.uint64]
    """[K]; 0: nothing there."""
    known_s: Floats
    """[K, S + 3]: the ends, then the tail (`State`)."""
    work: Ints
    """[1]: actions replayed, other work counted as so many."""


def new_memo(n_stages: int) -> Memo:
    return Memo(
        np.zeros(SLOTS, dtype=np.uint64), np.zeros((SLOTS, n_stages + 3)), np.zeros(1, dtype=np.int64)
    )


@kernel
def key_of(alike: Ints, layout: Layout, replica: int) -> np.uint64:
    """A hash of all that the pipeline's ends depend on; never 0."""
    cells, cut = layout.cells[replica], layout.cut
    key = np.uint64(layout.shares[replica]) * _STEP
    for s in range(len(cells)):
        key ^= np.uint64(alike[cells[s]]) * np.uint64(4096) + np.uint64(cut[s]) + _STEP
        key *= _MIX
        key ^= key >> np.uint64(29)
    return key | np.uint64(1)


@kernel
def recall(memo: Memo, key: np.uint64, ends_s: Floats, tail_s: Floats, replica: int) -> bool:
    """Fill in a pipeline's ends and tail; False, and nothing changed, if it is not known."""
    slot = np.int64((key >> np.uint64(8)) % np.uint64(len(memo.keys)))
    if memo.keys[slot] != key:
        return False
    n_stages = ends_s.shape[1]
    for s in range(n_stages):
        ends_s[replica, s] = memo.known_s[slot, s]
    for k in range(3):
        tail_s[replica, k] = memo.known_s[slot, n_stages + k]
    return True


@kernel
def remember(memo: Memo, key: np.uint64, ends_s: Floats, tail_s: Floats, replica: int) -> None:
    """Keep a pipeline's ends and tail."""
    slot = np.int64((key >> np.uint64(8)) % np.uint64(len(memo.keys)))
    memo.keys[slot] = key
    n_stages = ends_s.shape[1]
    for s in range(n_stages):
        memo.known_s[slot, s] = ends_s[replica, s]
    for k in range(3):
        memo.known_s[slot, n_stages + k] = tail_s[replica, k]

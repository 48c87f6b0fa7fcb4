"""The one door to numba: compiled once a machine, kept beside the module, typed as the Python it is.

Importing it imports numba (a third of a second), so modules of kernels are imported where they are
used. Knows nothing of what it compiles.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

from numba import njit

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """`function` as machine code; the order of its operations is kept, so results do not depend on it."""
    return cast("F", njit(cache=True, error_model="numpy")(function))


def kernel(function: F) -> F:
    """`compiled` for what makes no array: references to arrays are then not counted, which takes a small
    function that is handed tuples of them several times as long as its work."""
    return cast("F", njit(cache=True, error_model="numpy", _nrt=False)(function))

"""Tables of constants that layers of a process share: made once, whoever asks. Knows no layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from threading import Lock
from typing import Generic, TypeVar, TypeVarTuple

import torch

KEPT = 16
"""Tables of a kind that are remembered, the last ones asked for."""

Asked = TypeVarTuple("Asked")
Made = TypeVar("Made")


class Table(Generic[*Asked, Made]):
    """What `make` makes of hashable arguments, remembered.

    Threads that ask at once get one table: else two layers of a stage may keep one each for backward. A table
    made under inference mode could never be used in training again, so none is.
    """

    def __init__(self, make: Callable[[*Asked], Made]) -> None:
        def made(*asked: *Asked) -> Made:
            with torch.inference_mode(False), torch.no_grad():
                return make(*asked)

        self._made, self._making = lru_cache(maxsize=KEPT)(made), Lock()
        self.cache_clear, self.cache_info = self._made.cache_clear, self._made.cache_info

    def __call__(self, *asked: *Asked) -> Made:
        with self._making:
            return self._made(*asked)

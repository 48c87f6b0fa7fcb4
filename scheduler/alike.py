"""Which devices are interchangeable: exchanging two that are changes no cost.

Knows matrices of links and numbers of devices; not what either means.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def kinds_of(links: Sequence[Floats], traits: Floats | None = None) -> NDArray[np.int64]:
    """[d]: devices with equal links to everybody and to each other, and equal traits, share a number.

    `links`: matrices [N, N] whose diagonals are ignored; `traits`: [N, k].
    """
    n = len(links[0])
    kind = np.full(n, -1, dtype=np.int64)
    candidates: dict[bytes, list[int]] = {}
    representatives: list[int] = []
    for d in range(n):
        mark = _mark(links, traits, d)
        for k in candidates.setdefault(mark, []):
            if _interchangeable(links, d, representatives[k]):
                kind[d] = k
                break
        else:
            kind[d] = len(representatives)
            candidates[mark].append(len(representatives))
            representatives.append(d)
    return kind


def _mark(links: Sequence[Floats], traits: Floats | None, d: int) -> bytes:
    """Equal for interchangeable devices: what its links are, whoever they lead to."""
    rows = [np.sort(np.delete(line, d)) for m in links for line in (m[d], m[:, d])]
    return b"".join([row.tobytes() for row in rows] + ([] if traits is None else [traits[d].tobytes()]))


def _interchangeable(links: Sequence[Floats], a: int, b: int) -> bool:
    """Whether every link of a is the link of b to the same device, and theirs is alike both ways."""
    others = np.ones(len(links[0]), dtype=bool)
    others[[a, b]] = False
    return all(
        m[a, b] == m[b, a]
        and np.array_equal(m[a][others], m[b][others])
        and np.array_equal(m[:, a][others], m[:, b][others])
        for m in links
    )

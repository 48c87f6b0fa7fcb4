"""Several documents in one sample, kept apart: which is whose, and where each begins.

A document begins with the token that ends the one before it (the tokenizer's end of a document), so that
every target follows from tokens of its own document, the first from that token alone. Knows no layer.

Shapes: B samples, T positions, c chunks of Q positions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def documents_of(tokens_BT: Tensor, separator: int) -> Tensor:
    """(B,T) int64: the number of the document, within its sample, that each position belongs to."""
    return (tokens_BT == separator).cumsum(1)


def positions_in(documents_BT: Tensor) -> Tensor:
    """(B,T) int64: each position's own, counted from the begin of its document in the sample."""
    at_T = torch.arange(documents_BT.shape[1], device=documents_BT.device)
    begins_BT = F.pad(documents_BT.diff(dim=1) != 0, (1, 0), value=True)
    first_BT: Tensor = torch.where(begins_BT, at_T, 0).cummax(1).values
    return at_T - first_BT


class Borders(NamedTuple):
    """Where a recurrence that goes chunk by chunk forgets, as factors of 0 and 1."""

    same: Tensor
    """(B,c,Q,Q) bool: of one document."""
    carried: Tensor
    """(B,c,Q): of the document in which the chunk before ended."""
    last: Tensor
    """(B,c,Q): of the document in which the chunk ends."""
    through: Tensor
    """(B,c): the chunk ends in the document in which the one before ended."""

    @staticmethod
    def of(documents_BT: Tensor, n: int, size: int, dtype: torch.dtype) -> Borders:
        """For `n` chunks of `size` positions; those added at the end belong to the last document. Nothing is
        carried into the first chunk."""
        lacking = n * size - documents_BT.shape[1]
        tail = documents_BT[:, -1:].expand(-1, lacking)
        of = torch.cat((documents_BT, tail), 1).view(len(documents_BT), n, size)
        end = of[..., -1]
        before = F.pad(end[:, :-1], (1, 0), value=-1)
        return Borders(
            of[..., :, None] == of[..., None, :],
            (of == before[..., None]).to(dtype),
            (of == end[..., None]).to(dtype),
            (end == before).to(dtype),
        )

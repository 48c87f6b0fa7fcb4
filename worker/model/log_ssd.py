"""Log-linear attention over SSD's states (Guo et al. 2025, "Log-linear attention", sections 3.2 and 3.3).

Where SSD has one state of all earlier positions, this has one of each of log T stretches, Fenwick's tree:
position t reads s at level bit_length(t XOR s), stretches twice as long from level to level, and weighs each
level as it chooses: y = (L * C B^T * Lambda) (dt x) with Lambda_ts = weight_t[level(t, s)]. All at once it
costs T log T; in steps, log T states. Parameters: SSD's, `levels.weight` and `levels.bias` (softplus of it is
the weight; it begins at 1, where this is SSD).

Shapes: as in `ssd.py`, and M levels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.model.cores import recomputed
from worker.model.fenwick import TreeState, in_pairs, levels_between, spread, tree_lengths
from worker.model.levels import LogLinearState, WithLevels
from worker.model.ssd import Chunks, Ssd


class LogSsd(WithLevels, Ssd):
    def begin(self) -> LogLinearState:  # type: ignore[override]
        shape = (self.state, self.heads, self.inner // self.heads)
        return LogLinearState(self.conv.begin(), TreeState.empty(self.skip, self.levels.n, shape))

    def forward(  # type: ignore[override]
        self, x_BTD: Tensor, state: LogLinearState | None = None
    ) -> tuple[Tensor, LogLinearState | None]:
        self.levels.check(x_BTD, state)
        gate, x, b, c, step, convolved = self._projected(x_BTD, None if state is None else state.convolved)
        weights, decay = self.levels(x_BTD), -self.log_decay.exp()
        if state is None:
            y = recomputed(log_ssd, x, b, c, step, decay, weights, self.chunk)
            return self._finished(gate, y + self.skip[:, None] * x), None
        tree, y_t = state.tree, []
        for t in range(x_BTD.shape[1]):  # each position changes which stretches there are
            written = b[:, t, :, None, None] * (x[:, t] * step[:, t, :, None])[:, None]
            tree = tree.faded((step[:, t] * decay).exp()[:, None, None, :, None])
            taken = torch.einsum("bn,bmnhp->bmhp", c[:, t], tree.stretches)
            now = (c[:, t] * b[:, t]).sum(-1)[:, None, None] * x[:, t] * step[:, t, :, None]
            read = torch.cat((now[:, None], taken), dim=1) * weights[:, t].mT[..., None]
            y_t.append(read.sum(1))
            tree = tree.behind(written)
        y = torch.stack(y_t, 1)
        return self._finished(gate, y + self.skip[:, None] * x), LogLinearState(convolved, tree)

    def as_matrix(self, x_BTD: Tensor) -> Tensor:
        skip = self.skip[:, None, None] * torch.eye(x_BTD.shape[1], dtype=x_BTD.dtype)
        return (super().as_matrix(x_BTD) - skip) * spread(self.levels(x_BTD)) + skip


def log_ssd(
    x_BTHP: Tensor,
    b_BTN: Tensor,
    c_BTN: Tensor,
    step_BTH: Tensor,
    decay_H: Tensor,
    weights_BTHM: Tensor,
    chunk: int,
) -> Tensor:
    """y (B,T,H,P): within a chunk (a power of two of positions) as a matrix, over chunks up the tree."""
    chunks = Chunks.of(x_BTHP, b_BTN, c_BTN, step_BTH, decay_H, chunk)
    weights = chunks.cut(weights_BTHM)
    inside = levels_between(chunks.size, x_BTHP.device)
    within = weights.transpose(2, 3).gather(-1, inside.expand(*weights.shape[:2], weights.shape[3], -1, -1))
    scores = chunks.scores() * within
    y = (scores @ chunks.written.transpose(2, 3)).transpose(2, 3)
    if chunks.n > 1:
        y = y + _up_the_tree(chunks, weights)
    return y.flatten(1, 2)[:, : x_BTHP.shape[1]]


def _up_the_tree(chunks: Chunks, weights_BcQHM: Tensor) -> Tensor:
    """What is read of whole stretches before the chunk, (B,c,Q,H,P)."""
    n, levels = tree_lengths(chunks.n)
    grown = [
        F.pad(x, (0, 0) * (x.ndim - 2) + (0, n - chunks.n))
        for x in (chunks.added(), chunks.sums[:, :, -1], chunks.c, chunks.sums, weights_BcQHM)
    ]
    stretches, total, c, sums, weights = grown
    before = total.cumsum(1) - total  # of each chunk, from the first position on
    first = chunks.size.bit_length()  # level of the chunk beside
    batch, heads, width = len(c), total.shape[-1], stretches.shape[-1]
    y = torch.zeros_like(chunks.written[:, :1])
    for level in range(levels):
        half = 1 << level
        # Pairs of neighbouring stretches: chunks in the right one read the left one as a whole.
        left, right = in_pairs(stretches, 1).squeeze(3).unbind(2)
        c_right = in_pairs(c, half)[:, :, 1].flatten(2, 3)
        read = (c_right @ left.flatten(3)).view(batch, -1, half, chunks.size, heads, width)
        since = in_pairs(before, half)[:, :, 1]
        since = since - since[:, :, :1]
        fading = (since[:, :, :, None] + in_pairs(sums, half)[:, :, 1]).exp()
        weight = in_pairs(weights[..., first + level], half)[:, :, 1]
        read = read * (fading * weight)[..., None]
        y = y + torch.stack((torch.zeros_like(read), read), 2).flatten(1, 3)
        over = in_pairs(total, 1).squeeze(3)
        stretches = left * over[:, :, 1, None, :, None].exp() + right
        total = over.sum(2)
    return y[:, : chunks.n]

"""Log-linear attention over the gated delta rule's states (Guo et al. 2025, section 3.2).

As in `log_ssd.py`: a state for each stretch of Fenwick's tree instead of one, all of them going on by one
rule, and weights for the levels that each position chooses. Parameters: Gated DeltaNet's, `levels.weight` and
`levels.bias` (softplus of it is the weight; it begins at 1, where this is Gated DeltaNet).

Shapes: as in `delta.py`, and M levels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worker.model.cores import recomputed
from worker.model.delta import Delta, DeltaChunks, Inputs
from worker.model.fenwick import TreeState, in_pairs, levels_between, spread, tree_lengths
from worker.model.levels import LogLinearState, WithLevels


class LogDelta(WithLevels, Delta):
    def begin(self) -> LogLinearState:  # type: ignore[override]
        shape = (self.heads, self.key, self.value)
        return LogLinearState(self.conv.begin(), TreeState.empty(self.log_decay, self.levels.n, shape))

    def forward(  # type: ignore[override]
        self, x_BTD: Tensor, state: LogLinearState | None = None
    ) -> tuple[Tensor, LogLinearState | None]:
        self.levels.check(x_BTD, state)
        given, gate, convolved = self._projected(x_BTD, None if state is None else state.convolved)
        weights = self.levels(x_BTD)
        if state is None:
            return self._finished(gate, recomputed(log_delta, *given, weights, self.chunk)), None
        tree, y_t = state.tree, []
        for t in range(x_BTD.shape[1]):  # each position changes which stretches there are
            q, k, v, strength, fading = (x[:, :, t] for x in given)
            tree = tree.faded(fading.exp()[:, None, :, None, None])
            found = torch.einsum("bhn,bmhnp->bmhp", k, tree.stretches.expand(len(k), -1, -1, -1, -1))
            taken = strength[:, None, :, None, None] * k[:, None, ..., None] * found[..., None, :]
            tree = TreeState(tree.stretches - taken, tree.seen)
            read = torch.einsum("bhn,bmhnp->bmhp", q, tree.stretches)
            now = ((q * k).sum(-1) * strength)[..., None] * v
            y_t.append((torch.cat((now[:, None], read), dim=1) * weights[:, t].mT[..., None]).sum(1))
            tree = tree.behind(k[..., None] * (strength[..., None] * v)[..., None, :])
        return self._finished(gate, torch.stack(y_t, 2)), LogLinearState(convolved, tree)

    def as_matrix(self, x_BTD: Tensor) -> Tensor:
        return super().as_matrix(x_BTD) * spread(self.levels(x_BTD))


def log_delta(
    q: Tensor, k: Tensor, v: Tensor, strength: Tensor, fading: Tensor, weights_BTHM: Tensor, chunk: int
) -> Tensor:
    """y (B,H,T,P): within a chunk (a power of two of positions) as a matrix, over chunks up the tree."""
    size = min(chunk, q.shape[2])
    n, _ = tree_lengths(-(-q.shape[2] // size))
    chunks = DeltaChunks(Inputs(q, k, v, strength, fading), n, size)
    weights = chunks.cut(weights_BTHM.transpose(1, 2))  # (B,c,H,Q,M)
    inside = levels_between(size, q.device).tril()
    matrix = chunks.matrix() * weights.gather(-1, inside.expand(*weights.shape[:3], -1, -1))
    read = _up_the_tree(chunks, weights) if n > 1 else 0.0
    return chunks.joined(read + matrix @ chunks.v)


def _up_the_tree(chunks: DeltaChunks, weights_BcHQM: Tensor) -> Tensor:
    """What is read of whole stretches before the chunk, (B,c,H,Q,P)."""
    stretches, queries = chunks.added(), chunks.queries()
    over = chunks.transition() if chunks.n > 2 else None
    _, levels = tree_lengths(chunks.n)
    first = chunks.size.bit_length()  # level of the chunk beside
    y = torch.zeros_like(chunks.v)
    for level in range(levels):
        half = 1 << level
        # Pairs of neighbouring stretches: chunks in the right one read the left one, one after the other.
        left, right = in_pairs(stretches, 1).squeeze(3).unbind(2)
        # Unbound at once: the gradient of `over[:, :, i]` is as large as all chunks' together, for each i.
        steps = () if over is None else in_pairs(over, half)[:, :, 1].unbind(2)
        before = [left]
        for step in steps[: half if level + 1 < levels else half - 1]:
            before.append(step @ before[-1])
        read = in_pairs(queries, half)[:, :, 1] @ torch.stack(before[:half], 2)
        taken = read * in_pairs(weights_BcHQM[..., first + level, None], half)[:, :, 1]
        y = y + torch.stack((torch.zeros_like(taken), taken), 2).flatten(1, 3)
        stretches = before[-1] + right
    return y

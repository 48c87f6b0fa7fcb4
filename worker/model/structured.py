"""Linear maps with fewer parameters than inputs x outputs, in place of a dense matrix.

Shapes: R rows; I inputs, O outputs; n blocks.
"""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor, nn

from scheduler.mixers import MlpSpec
from scheduler.mixers.structured import butterfly_rows
from worker.model.cores import recomputed
from worker.model.layer import blank
from worker.model.parts import Linear


class Structured(nn.Module):
    """y = x W^T + b with a W that is never whole. `std`: of the entries of the W that it begins with."""

    bias: Tensor | None

    def initial(self, parameter: str, rng: torch.Generator) -> Tensor | None:
        raise NotImplementedError

    def to_dense(self) -> Tensor:
        """The matrix (outputs, inputs)."""
        raise NotImplementedError

    def dense(self, x: Tensor) -> Tensor:
        """The same with the matrix whole."""
        y = x @ self.to_dense().mT
        return y if self.bias is None else y + self.bias


class Monarch(Structured):
    """Two block-diagonal factors with a transposition between them (Dao et al. 2022, "Monarch", section 3).

    W cut into n x n blocks has in block (i,j) the rank-1 matrix second[i,:,j] first[j,i,:]^T, so n (I + O)
    parameters. `first` (n, n, I/n), `second` (n, O/n, n).
    """

    def __init__(self, inputs: int, outputs: int, blocks: int, bias: bool, std: float) -> None:
        super().__init__()
        self.blocks, self.std = blocks, std
        self.first = blank(blocks, blocks, inputs // blocks)
        self.second = blank(blocks, outputs // blocks, blocks)
        self.bias = blank(outputs) if bias else None

    def initial(self, parameter: str, rng: torch.Generator) -> Tensor | None:
        """Unit variance between the factors, and behind them what a dense matrix would give."""
        width = sqrt(self.first.shape[-1])
        match parameter:
            case "first":
                return torch.randn(self.first.shape, generator=rng) / width
            case "second":
                return torch.randn(self.second.shape, generator=rng) * width * self.std
            case _:
                return None

    def forward(self, x: Tensor) -> Tensor:
        x_nRp = x.reshape(-1, self.blocks, self.first.shape[-1]).transpose(0, 1)
        between_nRn = torch.bmm(x_nRp, self.first.mT)
        y_nRs = torch.bmm(between_nRn.permute(2, 1, 0), self.second.mT)
        y = y_nRs.transpose(0, 1).reshape(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias

    def to_dense(self) -> Tensor:
        blocks = self.second.transpose(1, 2)[..., None] * self.first.transpose(0, 1)[:, :, None]
        return blocks.transpose(1, 2).flatten(2).flatten(0, 1)

    @torch.no_grad()
    def project(self, dense_OI: Tensor) -> None:
        """Take the nearest Monarch matrix (Frobenius norm): the best rank 1 of each block (theorem 1)."""
        n = self.blocks
        blocks = dense_OI.reshape(n, dense_OI.shape[0] // n, n, -1).transpose(1, 2)
        left, sizes, right = torch.linalg.svd(blocks, full_matrices=False)
        root = sizes[..., 0].sqrt()[..., None]
        self.second.copy_((left[..., 0] * root).transpose(1, 2))
        self.first.copy_((right[..., 0, :] * root).transpose(0, 1))


class Pixelfly(Structured):
    """A flat block butterfly and a low rank (Dao et al. 2022, "Pixelated Butterfly", section 3.3):
    W = mix B + (1 - mix) U V. `tiles` (n, m, O/n, I/n) in the order of `butterfly_rows`, `left` U (O, rank),
    `right` V (rank, I), `mix` (1,)."""

    def __init__(self, inputs: int, outputs: int, blocks: int, rank: int, bias: bool, std: float) -> None:
        super().__init__()
        self.rows, self.std = butterfly_rows(blocks), std
        self.tiles = blank(blocks, len(self.rows[0]), outputs // blocks, inputs // blocks)
        self.left, self.right, self.mix = blank(outputs, rank), blank(rank, inputs), blank(1)
        self.bias = blank(outputs) if bias else None

    def initial(self, parameter: str, rng: torch.Generator) -> Tensor | None:
        """Both parts begin as large as a dense matrix together: tiles are denser by what they leave out."""
        dense = self.std * sqrt(2)
        match parameter:
            case "tiles":
                spread = dense * sqrt(len(self.rows) / len(self.rows[0]))
                return torch.randn(self.tiles.shape, generator=rng) * spread
            case "left":
                return torch.randn(self.left.shape, generator=rng) * dense
            case "right":
                return torch.randn(self.right.shape, generator=rng) / sqrt(self.right.shape[0])
            case "mix":
                return torch.full((1,), 0.5)
            case _:
                return None

    def forward(self, x: Tensor) -> Tensor:
        sparse = recomputed(_butterfly, x, self.tiles, self.rows)
        low = (x @ self.right.mT) @ self.left.mT
        y = self.mix * sparse + (1 - self.mix) * low
        return y if self.bias is None else y + self.bias

    def to_dense(self) -> Tensor:
        n, _, tall, wide = self.tiles.shape
        butterfly = self.tiles.new_zeros(n, tall, n, wide)
        for i, columns in enumerate(self.rows):
            for place, j in enumerate(columns):
                butterfly[i, :, j] = self.tiles[i, place]
        low = self.left @ self.right
        return self.mix * butterfly.flatten(2).flatten(0, 1) + (1 - self.mix) * low

    @torch.no_grad()
    def project(self, dense_OI: Tensor) -> None:
        """Take the butterfly's blocks of a dense matrix, and of the rest the best low rank."""
        n, _, tall, wide = self.tiles.shape
        blocks = dense_OI.reshape(n, tall, n, wide).clone()
        for i, columns in enumerate(self.rows):
            for place, j in enumerate(columns):
                self.tiles[i, place] = blocks[i, :, j] / self.mix
                blocks[i, :, j] = 0
        left, sizes, right = torch.linalg.svd(blocks.view(n * tall, n * wide), full_matrices=False)
        rank = self.right.shape[0]
        self.left.copy_(left[:, :rank] * sizes[:rank] / (1 - self.mix))
        self.right.copy_(right[:rank])


def _butterfly(x: Tensor, tiles_nmsp: Tensor, rows: tuple[tuple[int, ...], ...]) -> Tensor:
    n, _, _, wide = tiles_nmsp.shape
    x_Rnp = x.reshape(-1, n, wide)
    read = x_Rnp[:, torch.tensor(rows, device=x.device)]  # (R,n,m,p)
    y = torch.bmm(read.flatten(2).transpose(0, 1), tiles_nmsp.transpose(2, 3).flatten(1, 2))
    return y.transpose(0, 1).reshape(*x.shape[:-1], -1)


def make_linear(
    options: MlpSpec, inputs: int, outputs: int, bias: bool, std: float = 0.02
) -> Linear | Monarch | Pixelfly:
    """The map that `options` mean."""
    if options.linear == "monarch":
        return Monarch(inputs, outputs, options.blocks, bias, std)
    if options.linear == "pixelfly":
        return Pixelfly(inputs, outputs, options.blocks, options.rank, bias, std)
    return Linear(inputs, outputs, bias)

"""SparseGPT (Frantar and Alistarh 2023, arXiv 2301.00774).

Pruning a weight of column j changes the layer's output. The columns behind j are moved to undo the change as far as
they can (least squares over the calibration inputs). With `U` the upper Cholesky factor of the inverse Hessian,
`H^-1 = U^T U`, row j of U holds all that this step needs (Algorithm 1): pruning w_j subtracts `(w_j / U_jj) U_j,j:`
from the row. Columns are taken in blocks; a block's changes reach the columns behind it in one product.

Deviations from the authors' code: the number of zeros of a block is exact when scores are equal; inputs that are zero
in every example are pruned first, but not beyond the number asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..utils.validation import check_count, check_number
from .base import OneShotMethod, Pattern, smallest, smallest_of_groups

_UNUSED = 1e-30  # below it float32 has no digits left for a sum of products: such an input is as good as zero


@dataclass(frozen=True)
class SparseGPT(OneShotMethod):
    """The smallest `w^2 / [H^-1]_jj` of a block of columns, or of every m for N:M; what is kept makes up for them.

    Args:
        percdamp: dampening: this fraction of the Hessian's mean diagonal is added to its diagonal; above 0.
        block_size: columns whose mask is chosen at once; a multiple of m for N:M.
    """

    percdamp: float = 0.01
    block_size: int = 128

    name: ClassVar[str] = "sparsegpt"
    reference: ClassVar[str] = "Frantar and Alistarh 2023, SparseGPT, arXiv 2301.00774"

    def __post_init__(self) -> None:
        check_number("SparseGPT.percdamp", self.percdamp, 0, float("inf"), low_open=True, high_open=True)
        check_count("SparseGPT.block_size", self.block_size)

    def prune(self, weight: Tensor, gram: Tensor | None, sparsity: float, pattern: Pattern | None) -> Tensor:
        assert gram is not None
        if pattern is not None and self.block_size % pattern.m:
            raise ValueError(
                f"SparseGPT.block_size = {self.block_size} is not allowed with pattern '{pattern}': use a multiple of"
                f" {pattern.m}"
            )
        pairs = zip(weight, gram, strict=True)
        return torch.stack([self._prune_matrix(one, its_gram, sparsity, pattern) for one, its_gram in pairs])

    def _prune_matrix(self, weight: Tensor, gram: Tensor, sparsity: float, pattern: Pattern | None) -> Tensor:
        weight = weight.clone()
        unused = gram.diagonal() <= _UNUSED
        factor = inverse_factor(gram, self.percdamp)
        for start in range(0, weight.shape[1], self.block_size):
            end = min(start + self.block_size, weight.shape[1])
            block, rest = weight[:, start:end], weight[:, end:]
            own = factor[start:end, start:end]
            scale = torch.where(unused[start:end], torch.inf, own.diagonal())
            pruned = torch.zeros_like(block, dtype=torch.bool)
            if pattern is None:
                score = (block / scale).square().flatten()
                pruned = smallest(score, round(sparsity * score.numel())).view_as(block)
            errors = torch.empty_like(block)
            for j in range(end - start):
                if pattern is not None and j % pattern.m == 0:  # scored with the changes made so far
                    group = slice(j, j + pattern.m)
                    pruned[:, group] = smallest_of_groups((block[:, group] / scale[group]).square(), pattern)
                errors[:, j] = block[:, j] * pruned[:, j] / own[j, j]
                block[:, j:] -= errors[:, j, None] * own[j, j:]
                block[:, j].masked_fill_(pruned[:, j], 0.0)
            rest -= errors @ factor[start:end, end:]
        return weight


def inverse_factor(gram: Tensor, percdamp: float) -> Tensor:
    """U, upper triangular, with `U^T U = (H + dampening)^-1`. Inputs that were always zero count as independent.

    `H` is `gram` divided by the mean of its diagonal: the scale changes no result, and tiny inputs don't underflow.

    Raises:
        ValueError: H is not positive definite.
    """
    diagonal = gram.diagonal()
    used = diagonal > _UNUSED
    scale = diagonal[used].mean() if used.any() else diagonal.new_ones(())
    hessian = gram / scale
    hessian.diagonal()[~used] = 1.0
    hessian.diagonal().add_(percdamp * hessian.diagonal().mean())
    lower, failed = torch.linalg.cholesky_ex(hessian)
    if not failed:
        upper: Tensor
        upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not failed:
            return upper
    raise ValueError(
        f"the Hessian of its inputs is not positive definite with percdamp = {percdamp}: give more calibration data,"
        " or a larger SparseGPT(percdamp=...); inputs that are not finite lead here as well"
    )

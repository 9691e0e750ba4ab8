"""Wanda (Sun et al. 2023, A Simple and Effective Pruning Approach for Large Language Models, arXiv 2306.11695)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import OneShotMethod, Pattern, smallest, smallest_of_groups


@dataclass(frozen=True)
class Wanda(OneShotMethod):
    """The smallest `|w_ij| ||x_j||` of each output i (eq. 1), or of every m inputs for N:M. The other weights stay.

    `||x_j||` is the l2 norm of input j over all calibration rows. Weights are compared within an output only, so each
    output loses `round(sparsity * inputs)` of them.
    """

    name: ClassVar[str] = "wanda"
    reference: ClassVar[str] = "Sun et al. 2023, A Simple and Effective Pruning Approach for LLMs, arXiv 2306.11695"

    def prune(self, weight: Tensor, gram: Tensor | None, sparsity: float, pattern: Pattern | None) -> Tensor:
        assert gram is not None
        score = wanda_score(weight, gram)
        if pattern is not None:
            return weight.masked_fill(smallest_of_groups(score, pattern), 0.0)
        return weight.masked_fill(smallest(score, round(sparsity * weight.shape[-1])), 0.0)


def wanda_score(weight: Tensor, gram: Tensor) -> Tensor:
    """`|w_ij| ||x_j||`, shaped like `weight`: (groups, outputs, inputs); `gram` is (groups, inputs, inputs)."""
    norm = gram.diagonal(dim1=-2, dim2=-1).sqrt()
    return weight.abs() * norm.unsqueeze(-2)

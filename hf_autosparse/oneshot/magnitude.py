"""Magnitude pruning: the smallest weights of a layer become zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import OneShotMethod, Pattern, smallest, smallest_of_groups


@dataclass(frozen=True)
class Magnitude(OneShotMethod):
    """The smallest `|w|` of the whole layer, or of every m for N:M. The other weights stay as they are."""

    name: ClassVar[str] = "magnitude"
    reference: ClassVar[str] = "Han et al. 2015, Learning both Weights and Connections, arXiv 1506.02626"
    needs_inputs: ClassVar[bool] = False

    def prune(self, weight: Tensor, gram: Tensor | None, sparsity: float, pattern: Pattern | None) -> Tensor:
        magnitude = weight.abs()
        if pattern is not None:
            return weight.masked_fill(smallest_of_groups(magnitude, pattern), 0.0)
        pruned = smallest(magnitude.flatten(), round(sparsity * weight.numel()))
        return weight.masked_fill(pruned.view_as(weight), 0.0)

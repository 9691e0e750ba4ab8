"""GMP: gradual magnitude pruning (Zhu & Gupta 2017)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..functional import largest
from .base import ANNEALING, BUDGET, Progress, register
from .masked import MaskedSparsifier, Periodic, kept_count
from .schedules import cubic_sparsity


@register
class GMP(MaskedSparsifier):
    """Dense at first; every `every` steps the smallest weights are pruned, `s = s_f (1 - (1 - p)^3)`, until `until`.

    The mask is the top of all weights by magnitude, pruned ones included: with alpha 0, the authors' way, these are
    frozen at the value they had; with alpha > 0 (Gradient Annealing) they go on learning and come back more easily.
    """

    name = "gmp"
    reference = "Zhu & Gupta 2017, To Prune, or Not to Prune, arXiv 1710.01878"
    Options = Periodic
    reads = ANNEALING | BUDGET

    def __init__(self, weight: Tensor, config, output_dim: int = 0, sparsity: float | None = None):
        super().__init__(weight, config, output_dim, sparsity)
        self.final_sparsity = sparsity

    def first_mask(self, weight: Tensor, sparsity: float | None) -> Tensor:
        return torch.ones_like(weight, dtype=torch.bool)

    def end_step(self, weight: nn.Parameter, progress: Progress) -> None:
        options = self.config.options
        ends = options.ends(progress)  # the full sparsity is reached for sure
        if ends or options.due(progress):
            wanted = cubic_sparsity(1.0 if ends else options.progress(progress), self.final_sparsity)
            self.kept.copy_(largest(weight.abs(), kept_count(weight, wanted)))

"""GMP: gradual magnitude pruning (Zhu & Gupta 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..functional import largest
from .base import register
from .masked import MaskedSparsifier, kept_count
from .progress import Progress
from .schedules import cubic_sparsity
from .settings import Annealing, Budget, Periodic


@dataclass(frozen=True, kw_only=True)
class GMPConfig(Budget, Periodic, Annealing):
    """GMP: the smallest weights are pruned step by step.

    Args:
        alpha_init: 0, the authors' way: pruned weights are frozen.
    """

    method: ClassVar[str] = "gmp"

    alpha_init: float = 0.0


@register(GMPConfig)
class GMP(MaskedSparsifier):
    """Dense at first; every `every` steps the smallest weights are pruned, `s = s_f (1 - (1 - p)^3)`, until `until`.

    A layer that has zeros already goes up from there, `s = s_i + (s_f - s_i) (1 - (1 - p)^3)`.

    The mask is the top of all weights by magnitude, pruned ones included: with alpha 0, the authors' way, these are
    frozen at the value they had; with alpha > 0 (Gradient Annealing) they go on learning and come back more easily.
    """

    reference = "Zhu & Gupta 2017, To Prune, or Not to Prune, arXiv 1710.01878"
    config: GMPConfig

    def first_mask(self, weight: Tensor, sparsity: float) -> Tensor:
        return torch.ones_like(weight, dtype=torch.bool)

    def end_step(self, weight: nn.Parameter, progress: Progress) -> None:
        is_last = self.config.is_last(progress)  # every run reaches the full sparsity
        if is_last or self.config.is_due(progress):
            done = 1.0 if is_last else self.config.fraction_done(progress)
            wanted = cubic_sparsity(done, self.final_sparsity, self.start_sparsity)
            self.kept.copy_(largest(weight.abs(), kept_count(weight, wanted)))

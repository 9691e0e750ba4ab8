"""MEST: memory-economic sparse training (Yuan et al. 2021), with elastic mutation and its soft memory bound."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from ..functional import largest
from .base import register
from .masked import RandomMaskSparsifier, kept_count
from .progress import Progress
from .settings import Budget, Periodic

HALVED = 0.75  # the authors halve the mutation at epoch 90 and end it at 120


@dataclass(frozen=True, kw_only=True)
class MESTConfig(Budget, Periodic):
    """MEST: the least important weights are pruned and zeros grown at random (EM), or grown first (EM&S).

    Args:
        mutation_fraction: share of the kept weights that changes at a time; the authors' 0.2 (0.5 to 1 for EM&S).
        soft_memory_bound: EM&S: grown weights come on top of the budget until the next change.
        gradient_weight: lambda, the weight of the gradient in the score `|w| + lambda |g|`; 0 in the authors' published
            scripts.
    """

    method: ClassVar[str] = "mest"

    every: int = 4000
    mutation_fraction: float = 0.2
    soft_memory_bound: bool = False
    gradient_weight: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("mutation_fraction", 0, 1, low_open=True)
        self.check_boolean("soft_memory_bound")
        self.check_number("gradient_weight", 0, math.inf)

    def changing_count(self, progress: Progress, kept: int) -> int:
        """How many of `kept` weights change: less from three quarters of `until` on, none at its end."""
        if self.is_last(progress):  # `until` may lie between two steps
            return 0
        return round(kept * self.mutation_fraction * (1.0 if self.fraction_done(progress) < HALVED else 0.5))


@register(MESTConfig)
class MEST(RandomMaskSparsifier):
    """Elastic mutation: every `every` steps the least important weights are pruned and as many zeros grown at random.

    Grown weights start at 0 without optimizer state, even those just pruned. EM prunes below the budget and grows back
    to it; EM&S (`soft_memory_bound`) prunes to the budget and grows beyond it, so that the new weights have trained
    when they are judged. From `until` on the budget holds. Starts from a random mask; the authors' `every` is 5 epochs
    (about 4000 steps of CIFAR-10).
    """

    reference = "Yuan et al. 2021, MEST, arXiv 2110.14032"
    config: MESTConfig

    def needs_gradient(self, progress: Progress) -> bool:
        return self.config.gradient_weight > 0 and self._changes(progress)

    def _changes(self, progress: Progress) -> bool:
        return self.config.is_due(progress) or self.config.is_last(progress)

    def end_step(self, weight: nn.Parameter, progress: Progress) -> Tensor | None:
        if not self._changes(progress):
            return None
        config = self.config
        score = weight.abs()
        if config.gradient_weight > 0:
            score = score + config.gradient_weight * self.take_gradient(weight).abs()
        budget = kept_count(weight, self.final_sparsity)
        count = config.changing_count(progress, budget)
        if config.soft_memory_bound:
            count = min(count, kept_count(weight, self.start_sparsity) - budget)
        survivor_count = budget if config.soft_memory_bound else budget - count
        survivors = largest(score.masked_fill(~self.kept, -1.0), survivor_count)
        score = self.random_score(weight, progress.step).masked_fill(survivors, -1.0)
        grown = largest(score, min(count, int((~survivors).sum())))
        self.kept.copy_(survivors | grown)
        weight.masked_fill_(grown, 0)
        return grown

"""MEST: memory-economic sparse training (Yuan et al. 2021), with elastic mutation and its soft memory bound."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from ..functional import largest
from ..utils.validation import check_boolean, check_number
from .base import Progress, register
from .masked import Periodic, kept_count
from .set_ import SET

HALVED = 0.75  # the authors halve the mutation at epoch 90 and end it at 120


@dataclass(frozen=True)
class MESTOptions(Periodic):
    """`mutation`: share of the kept weights that changes at a time; the authors' 0.2 (0.5 to 1 with `soft`).

    `soft`: EM&S, the soft memory bound: what is grown comes on top of the budget until the next change. `gradient`:
    lambda, the weight of the gradient in the score `|w| + lambda |g|`; 0 in the authors' published scripts.
    """

    every: int = 4000
    mutation: float = 0.2
    soft: bool = False
    gradient: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("AutoSparseConfig.options['mutation']", self.mutation, 0, 1, low_open=True)
        check_boolean("AutoSparseConfig.options['soft']", self.soft)
        check_number("AutoSparseConfig.options['gradient']", self.gradient, 0, math.inf)

    def mutated(self, progress: Progress, kept: int) -> int:
        """How many of `kept` weights change: less from three quarters of `until` on, none at its end."""
        if self.ends(progress):  # `until` may lie between two steps
            return 0
        return round(kept * self.mutation * (1.0 if self.progress(progress) < HALVED else 0.5))


@register
class MEST(SET):
    """Elastic mutation: every `every` steps the least important weights are pruned and as many zeros grown at random.

    Grown weights start at 0 without optimizer state, even those just pruned. EM prunes below the budget and grows back
    to it; EM&S (`soft`) prunes to the budget and grows beyond it, so that the new weights have trained when they are
    judged. At `until` the budget holds for good. Starts from a random mask; the authors' `every` is 5 epochs (about
    4000 steps of CIFAR-10).
    """

    name = "mest"
    reference = "Yuan et al. 2021, MEST, arXiv 2110.14032"
    Options = MESTOptions

    def __init__(self, weight: Tensor, config, output_dim: int = 0, sparsity: float | None = None):
        super().__init__(weight, config, output_dim, sparsity)
        self.budget = kept_count(weight, sparsity)

    def needs_gradient(self, progress: Progress) -> bool:
        return self.config.options.gradient > 0 and self._changes(progress)

    def _changes(self, progress: Progress) -> bool:
        options = self.config.options
        return options.due(progress) or options.ends(progress)

    def end_step(self, weight: nn.Parameter, progress: Progress) -> Tensor | None:
        if not self._changes(progress):
            return None
        options = self.config.options
        score = weight.abs()
        if options.gradient > 0:
            score = score + options.gradient * self.take_gradient(weight).abs()
        count = options.mutated(progress, self.budget)
        survivors = largest(score.masked_fill(~self.kept, -1.0), self.budget - (0 if options.soft else count))
        score = self.random_score(weight, progress.step).masked_fill(survivors, -1.0)
        grown = largest(score, min(count, int((~survivors).sum())))
        self.kept.copy_(survivors | grown)
        weight.masked_fill_(grown, 0)
        return grown

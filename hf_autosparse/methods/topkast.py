"""TopKAST: always sparse training (Jayakumar et al. 2020), with Powerpropagation and Gradient Annealing as options."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..functional import largest, masked_weight, signed_power
from ..utils.validation import check_count, check_number
from .base import ANNEALING, BUDGET, Options, Progress, register
from .masked import MaskedSparsifier, kept_count


@dataclass(frozen=True)
class TopKASTOptions(Options):
    """`every`: steps between two top-k selections. `l2`: decay of the forward set A, and `l2 / density` of B without A.

    `power`: Powerpropagation's exponent a (Schwarz et al. 2021, arXiv 2110.00296): the layer's parameter v stands for
    the weight `v |v|^(a - 1)`, so that large weights learn faster; 1 for none.
    """

    every: int = 100
    l2: float = 0.0
    power: float = 1.0

    def __post_init__(self) -> None:
        check_count("AutoSparseConfig.options['every']", self.every)
        check_number("AutoSparseConfig.options['l2']", self.l2, 0, float("inf"))
        check_number("AutoSparseConfig.options['power']", self.power, 1, float("inf"))


@register
class TopKAST(MaskedSparsifier):
    """Forward with the top `1 - target_sparsity` of the weights (A), gradient for the top `1 - backward_sparsity` (B).

    `backward_sparsity=None` lets all weights learn: the AutoSparse paper's "TopKAST*". alpha, 1 by default, scales the
    gradient of B without A: annealing it gives "TopKAST* + GA". The exploration loss is `l2 / 2` times the sum of w^2
    over A and of w^2 / D over B without A, D the forward density; with Powerpropagation, of v^2.
    """

    name = "topkast"
    reference = "Jayakumar et al. 2020, Top-KAST, arXiv 2106.03517"
    Options = TopKASTOptions
    reads = ANNEALING | BUDGET | {"backward_sparsity"}
    default_alpha = (1.0, "fixed")

    def __init__(self, weight: Tensor, config, output_dim: int = 0, sparsity: float | None = None):
        super().__init__(weight, config, output_dim, sparsity)
        self.density = 1.0 - sparsity
        self.register_buffer("learning", self._backward_set(weight.detach()))

    def first_mask(self, weight: Tensor, sparsity: float | None) -> Tensor:
        return largest(weight.abs(), kept_count(weight, sparsity))

    def _backward_set(self, weight: Tensor) -> Tensor | None:
        """B: the forward set and the largest others; None where all weights learn. |v| orders as |w| does."""
        if self.config.backward_sparsity is None:
            return None
        return self.kept | largest(weight.abs(), kept_count(weight, self.config.backward_sparsity))

    def initialise(self, weight: nn.Parameter) -> None:
        power = self.config.options.power
        if power != 1.0:
            weight.copy_(weight.sign() * weight.abs() ** (1.0 / power))

    def forward(self, weight: Tensor) -> Tensor:
        power = self.config.options.power
        if power != 1.0:
            weight = signed_power(weight, power)
        return masked_weight(weight, self.kept, self.alpha, self.learning)

    def gradient_mask(self, weight: Tensor) -> Tensor | None:
        return self.learning if self.alpha else self.kept

    def regularise(self, weight: nn.Parameter) -> None:
        l2 = self.config.options.l2
        if l2 and weight.grad is not None:
            pull = torch.where(self.kept, l2, l2 / self.density) * weight
            weight.grad += pull if self.learning is None else torch.where(self.learning, pull, 0)

    def end_step(self, weight: nn.Parameter, progress: Progress) -> None:
        if progress.step % self.config.options.every == 0:
            self.kept.copy_(largest(weight.abs(), int(self.kept.sum())))
            if self.learning is not None:
                self.learning.copy_(self._backward_set(weight))

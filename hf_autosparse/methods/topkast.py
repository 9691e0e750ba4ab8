"""TopKAST: always sparse training (Jayakumar et al. 2020), with Powerpropagation and Gradient Annealing as options."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..functional import largest, masked_weight, signed_power
from .base import register
from .masked import MaskedSparsifier, kept_count
from .progress import Progress
from .settings import Annealing, Budget


@dataclass(frozen=True, kw_only=True)
class TopKASTConfig(Budget, Annealing):
    """TopKAST: the largest weights compute, more of them learn.

    Args:
        backward_sparsity: the gradient is restricted to the `1 - backward_sparsity` largest weights; None for all.
        every: optimizer steps between two top-k selections.
        l2: decay of the forward set A, and `l2 / density` of B without A.
        power: Powerpropagation's exponent a (Schwarz et al. 2021, arXiv 2110.00296): the layer's parameter v stands for
            the weight `v |v|^(a - 1)`, so that large weights learn faster; 1 for none.
    """

    method: ClassVar[str] = "topkast"

    backward_sparsity: float | None = None
    every: int = 100
    l2: float = 0.0
    power: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("backward_sparsity", 0, 1, optional=True, high_open=True)
        self.check_count("every")
        self.check_number("l2", 0, math.inf)
        self.check_number("power", 1, math.inf)


@register(TopKASTConfig)
class TopKAST(MaskedSparsifier):
    """Forward with the top `1 - target_sparsity` of the weights (A), gradient for the top `1 - backward_sparsity` (B).

    `backward_sparsity=None` lets all weights learn: the AutoSparse paper's "TopKAST*". alpha, 1 by default, scales the
    gradient of B without A: annealing it gives "TopKAST* + GA". The exploration loss is `l2 / 2` times the sum of w^2
    over A and of w^2 / D over B without A, D the forward density; with Powerpropagation, of v^2.
    """

    reference = "Jayakumar et al. 2020, Top-KAST, arXiv 2106.03517"
    config: TopKASTConfig
    alpha: float
    learning: Tensor | None  # the backward set; None where all weights learn

    def __init__(self, weight: Tensor, config: TopKASTConfig, output_dim: int = 0, sparsity: float = 0.0):
        super().__init__(weight, config, output_dim, sparsity)
        learning = None if config.backward_sparsity is None else self._backward_set(weight.detach())
        self.register_buffer("learning", learning)

    def first_mask(self, weight: Tensor, sparsity: float) -> Tensor:
        return largest(weight.abs(), kept_count(weight, sparsity))

    def start_from_zeros(self, weight: Tensor, sparsity: float) -> None:
        super().start_from_zeros(weight, sparsity)
        if self.learning is not None:
            self.learning.copy_(self._backward_set(weight))

    def _backward_set(self, weight: Tensor) -> Tensor:
        """B: the forward set and the largest others. |v| orders as |w| does."""
        sparsity = self.config.backward_sparsity or 0.0
        return self.kept | largest(weight.abs(), kept_count(weight, sparsity))

    def initialise(self, weight: nn.Parameter) -> None:
        power = self.config.power
        if power != 1.0:
            weight.copy_(weight.sign() * weight.abs() ** (1.0 / power))

    def forward(self, weight: Tensor) -> Tensor:
        power = self.config.power
        if power != 1.0:
            weight = signed_power(weight, power)
        return masked_weight(weight, self.kept, self.alpha, self.learning)

    def gradient_mask(self, weight: Tensor) -> Tensor | None:
        return self.learning if self.alpha else self.kept

    def regularise(self, weight: nn.Parameter) -> None:
        l2 = self.config.l2
        if l2 and weight.grad is not None:
            pull = torch.where(self.kept, l2, l2 / (1.0 - self.final_sparsity)) * weight
            weight.grad += pull if self.learning is None else torch.where(self.learning, pull, 0)

    def end_step(self, weight: nn.Parameter, progress: Progress) -> None:
        if progress.step % self.config.every == 0:
            self.kept.copy_(largest(weight.abs(), int(self.kept.sum())))
            if self.learning is not None:
                self.learning.copy_(self._backward_set(weight))

"""N:M sparsity: SR-STE (Zhou et al. 2021), with Gradient Annealing as an option."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..functional import masked_weight, n_of_m_mask
from ..utils.validation import check_count, check_number
from .base import ANNEALING, Options, Sparsifier, register


@dataclass(frozen=True)
class NMOptions(Options):
    """`n` of every `m` consecutive weights along the input are kept. `decay`: SR-STE's pull of pruned weights to 0."""

    n: int = 2
    m: int = 4
    decay: float = 2e-4

    def __post_init__(self) -> None:
        check_count("AutoSparseConfig.options['m']", self.m, 2)
        check_count("AutoSparseConfig.options['n']", self.n)
        if self.n >= self.m:
            raise ValueError(f"AutoSparseConfig.options['n'] = {self.n} is not allowed: use less than m = {self.m}")
        check_number("AutoSparseConfig.options['decay']", self.decay, 0, float("inf"))


@register
class NM(Sparsifier):
    """The n largest of every m weights along the input (input channels of a convolution), chosen anew in each forward.

    alpha 1 (the default) is the straight-through estimator; annealing it gives "N:M + GA". `decay * w` is added to the
    gradient of pruned weights (SR-STE; the authors' ImageNet value by default). The sparsity is `1 - n / m`.
    """

    name = "nm"
    reference = "Zhou et al. 2021, Learning N:M Fine-grained Structured Sparse Networks (SR-STE), arXiv 2102.04010"
    Options = NMOptions
    reads = ANNEALING
    default_alpha = (1.0, "fixed")

    def __init__(self, weight: Tensor, config, output_dim: int = 0, sparsity: float | None = None):
        super().__init__(weight, config, output_dim, sparsity)
        self._input_dim = 1 - output_dim
        size, m = weight.shape[self._input_dim], config.options.m
        if size % m:
            raise ValueError(
                f"its {size} inputs do not divide into groups of m = {m}: list the layer in dense_modules, or choose"
                " another m"
            )

    def mask(self, weight: Tensor) -> Tensor:
        options, dim = self.config.options, self._input_dim
        inputs_last = weight.detach().abs().movedim(dim, -1)
        return n_of_m_mask(inputs_last, options.n, options.m).movedim(-1, dim)

    def forward(self, weight: Tensor) -> Tensor:
        return masked_weight(weight, self.mask(weight), self.alpha)

    def regularise(self, weight: nn.Parameter) -> None:
        if self.config.options.decay and weight.grad is not None:
            weight.grad += torch.where(self.mask(weight), 0, self.config.options.decay * weight)

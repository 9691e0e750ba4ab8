"""N:M sparsity: SR-STE (Zhou et al. 2021), with Gradient Annealing as an option."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..functional import masked_weight, n_of_m_mask
from .base import CHANCE, Sparsifier, register
from .config import SparseConfig
from .settings import Annealing


@dataclass(frozen=True, kw_only=True)
class NMConfig(Annealing):
    """N:M: the n largest of every m weights, which a GPU multiplies faster.

    Args:
        n: weights kept of every `m` consecutive ones along the input.
        m: size of a group. A layer whose number of inputs it does not divide stays dense.
        pruned_decay: SR-STE's pull of pruned weights to 0, added to their gradient as `pruned_decay * w`.
    """

    method: ClassVar[str] = "nm"

    n: int = 2
    m: int = 4
    pruned_decay: float = 2e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_count("m", 2)
        self.check_count("n")
        if self.n >= self.m:
            raise self.reject("n", f"less than m = {self.m}")
        self.check_number("pruned_decay", 0, math.inf)


@register(NMConfig)
class NM(Sparsifier):
    """The n largest of every m weights along the input (input channels of a convolution), chosen anew in each forward.

    alpha 1 (the default) is the straight-through estimator; annealing it gives "N:M + GA". `pruned_decay * w` is
    added to the gradient of pruned weights (SR-STE; the authors' ImageNet value by default). The sparsity is
    `1 - n / m`.
    """

    reference = "Zhou et al. 2021, Learning N:M Fine-grained Structured Sparse Networks (SR-STE), arXiv 2102.04010"
    config: NMConfig
    alpha: float

    def __init__(self, weight: Tensor, config: NMConfig, output_dim: int = 0, sparsity: float = 0.0):
        super().__init__(weight, config, output_dim, sparsity)
        self._input_dim = 1 - output_dim

    @classmethod
    def unsuited(cls, weight: Tensor, config: SparseConfig, output_dim: int) -> str | None:
        assert isinstance(config, NMConfig)
        inputs, m = weight.shape[1 - output_dim], config.m
        return f"its {inputs} inputs do not divide into groups of m = {m}" if inputs % m else None

    def start_from_zeros(self, weight: Tensor, sparsity: float) -> None:
        super().start_from_zeros(weight, sparsity)
        n, m = self.config.n, self.config.m
        if self.start_sparsity > 1 - n / m + CHANCE:
            raise ValueError(
                f"{self.start_sparsity:.1%} of its weights are 0, and {n} of {m} would let some grow back: use"
                " FixedMaskConfig to keep them, fewer of m, or list the layer in dense_modules"
            )

    def mask(self, weight: Tensor) -> Tensor:
        dim = self._input_dim
        inputs_last = weight.detach().abs().movedim(dim, -1)
        return n_of_m_mask(inputs_last, self.config.n, self.config.m).movedim(-1, dim)

    def forward(self, weight: Tensor) -> Tensor:
        return masked_weight(weight, self.mask(weight), self.alpha)

    def regularise(self, weight: nn.Parameter) -> None:
        if self.config.pruned_decay and weight.grad is not None:
            weight.grad += torch.where(self.mask(weight), 0, self.config.pruned_decay * weight)

"""What the methods with an explicit mask share."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..functional import largest, masked_weight
from .base import Sparsifier
from .config import SparseConfig


class MaskedSparsifier(Sparsifier):
    """`w_hat = w * kept`; pruned weights get alpha times their gradient. `kept`: bool buffer, the weight's shape."""

    kept: Tensor

    def __init__(self, weight: Tensor, config: SparseConfig, output_dim: int = 0, sparsity: float = 0.0):
        super().__init__(weight, config, output_dim, sparsity)
        self.register_buffer("kept", self.first_mask(weight.detach(), sparsity))

    def first_mask(self, weight: Tensor, sparsity: float) -> Tensor:
        """The mask before training: bool, the weight's shape."""
        raise NotImplementedError

    def start_from_zeros(self, weight: Tensor, sparsity: float) -> None:
        super().start_from_zeros(weight, sparsity)
        self.kept.copy_(self.first_mask(weight, sparsity) & (weight != 0))

    def forward(self, weight: Tensor) -> Tensor:
        return masked_weight(weight, self.kept, self.alpha or 0.0)

    def mask(self, weight: Tensor) -> Tensor:
        return self.kept


class RandomMaskSparsifier(MaskedSparsifier):
    """Starts from a random mask, and draws numbers that are equal on every process, on any device and after a resume.

    `seed`: int64 buffer of shape (1,), drawn once from torch's generator.
    """

    seed: Tensor

    def first_mask(self, weight: Tensor, sparsity: float) -> Tensor:
        self.register_buffer("seed", torch.randint(2**31, (1,)))
        return largest(self.random_score(weight, step=0), kept_count(weight, sparsity))

    def start_from_zeros(self, weight: Tensor, sparsity: float) -> None:
        super().start_from_zeros(weight, sparsity)
        score = self.random_score(weight, step=0).masked_fill(weight == 0, -1.0)
        self.kept.copy_(largest(score, kept_count(weight, sparsity)))

    def random_score(self, weight: Tensor, step: int) -> Tensor:
        """Uniform numbers of the weight's shape, which depend on the layer's seed and the step alone."""
        generator = torch.Generator().manual_seed(int(self.seed) + step)
        return torch.rand(weight.shape, generator=generator).to(weight.device)  # drawn on the CPU: equal on any device


def kept_count(weight: Tensor, sparsity: float) -> int:
    """How many weights a layer keeps at `sparsity`, rounded, and at least one."""
    return max(1, weight.numel() - math.floor(sparsity * weight.numel() + 0.5))

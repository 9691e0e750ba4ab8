"""SWAT: sparse weight activation training (Raihan & Aamodt 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..functional import largest
from .base import register
from .masked import MaskedSparsifier, kept_count
from .progress import Progress
from .settings import Annealing, Budget


@dataclass(frozen=True, kw_only=True)
class SWATConfig(Budget, Annealing):
    """SWAT-U: the largest weights compute, and learn from the largest activations.

    Args:
        every: optimizer steps between two selections of weights.
        activation_sparsity: sparsity of the activations that the weight gradient is computed from; None for that of the
            layer's weight.
    """

    method: ClassVar[str] = "swat"

    every: int = 5
    activation_sparsity: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_count("every")
        self.check_number("activation_sparsity", 0, 1, optional=True, high_open=True)


@register(SWATConfig)
class SWAT(MaskedSparsifier):
    """SWAT-U: forward and input gradient with the largest weights, weight gradient from the largest activations.

    All weights learn (alpha 1, which may be annealed). The activations are selected anew in every forward and for each
    example by itself, where the authors take the whole batch and keep a threshold for 5 batches: so a batch may be
    split, by accumulation or over processes. The second product is computed densely here: it changes the result as
    theirs does, and costs time.
    """

    reference = "Raihan & Aamodt 2020, Sparse Weight Activation Training, arXiv 2001.01969"
    config: SWATConfig

    @property
    def activation_sparsity(self) -> float:
        given = self.config.activation_sparsity
        return self.final_sparsity if given is None else given

    def first_mask(self, weight: Tensor, sparsity: float) -> Tensor:
        return largest(weight.abs(), kept_count(weight, sparsity))

    def backward_input(self, input: Tensor) -> Tensor:
        examples = input.detach().reshape(1 if input.dim() == 1 else input.shape[0], -1)
        count = kept_count(examples[0], self.activation_sparsity)
        mask = torch.zeros_like(examples, dtype=torch.bool)
        mask.scatter_(1, examples.abs().topk(count, dim=1).indices, True)
        return torch.where(mask, examples, 0).view_as(input)

    def gradient_count(self, weight: Tensor) -> Tensor:
        """Counts multiplications in units of weights: each entry costs the share of activations that is left."""
        return (super().gradient_count(weight) * (1.0 - self.activation_sparsity)).round().long()

    def end_step(self, weight: nn.Parameter, progress: Progress) -> None:
        if progress.step % self.config.every == 0:
            self.kept.copy_(largest(weight.abs(), int(self.kept.sum())))

"""SWAT: sparse weight activation training (Raihan & Aamodt 2020)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..functional import largest
from ..utils.validation import check_count, check_number
from .base import ANNEALING, BUDGET, Options, Progress, register
from .masked import MaskedSparsifier, kept_count


@dataclass(frozen=True)
class SWATOptions(Options):
    """`every`: steps between two selections of weights. `activations`: sparsity of the activations that the weight
    gradient is computed from; None for the layer's own."""

    every: int = 5
    activations: float | None = None

    def __post_init__(self) -> None:
        check_count("AutoSparseConfig.options['every']", self.every)
        check_number("AutoSparseConfig.options['activations']", self.activations, 0, 1, optional=True, high_open=True)


@register
class SWAT(MaskedSparsifier):
    """SWAT-U: forward and input gradient with the largest weights, weight gradient from the largest activations.

    All weights learn (alpha 1, which may be annealed). The activations are selected anew in every forward and for each
    example by itself, where the authors take the whole batch and keep a threshold for 5 batches: so a batch may be
    split, by accumulation or over processes. The second product is computed densely here: it changes the result as
    theirs does, and costs time.
    """

    name = "swat"
    reference = "Raihan & Aamodt 2020, Sparse Weight Activation Training, arXiv 2001.01969"
    Options = SWATOptions
    reads = ANNEALING | BUDGET
    default_alpha = (1.0, "fixed")

    def __init__(self, weight: Tensor, config, output_dim: int = 0, sparsity: float | None = None):
        super().__init__(weight, config, output_dim, sparsity)
        given = config.options.activations
        self.activation_sparsity = sparsity if given is None else given

    def first_mask(self, weight: Tensor, sparsity: float | None) -> Tensor:
        return largest(weight.abs(), kept_count(weight, sparsity))

    def backward_input(self, input: Tensor) -> Tensor:
        examples = input.detach().reshape(1 if input.dim() == 1 else input.shape[0], -1)
        count = kept_count(examples[0], self.activation_sparsity)
        mask = torch.zeros_like(examples, dtype=torch.bool)
        mask.scatter_(1, examples.abs().topk(count, dim=1).indices, True)
        return torch.where(mask, examples, 0).view_as(input)

    def gradient_count(self, weight: Tensor) -> Tensor:
        """That of the multiplications, in weights: each entry costs the share of activations that is left."""
        return (super().gradient_count(weight) * (1.0 - self.activation_sparsity)).round().long()

    def end_step(self, weight: nn.Parameter, progress: Progress) -> None:
        if progress.step % self.config.options.every == 0:
            self.kept.copy_(largest(weight.abs(), int(self.kept.sum())))

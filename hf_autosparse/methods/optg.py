"""OptG: optimizing gradient-driven criteria (Zhang et al. 2022)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..functional import largest, score_masked_weight
from .base import register
from .masked import MaskedSparsifier, kept_count
from .progress import Progress
from .settings import Budget, LearnedParameters

STEEPEST = 20.0  # epochs: shorter runs than the authors' 100 go through the same curve, not through its middle only


@dataclass(frozen=True, kw_only=True)
class OptGConfig(Budget, LearnedParameters):
    """OptG: a trained score for each weight; the sparsity rises over training."""

    method: ClassVar[str] = "optg"


@register(OptGConfig)
class OptG(MaskedSparsifier):
    """Keeps the weights whose trained score is largest; the sparsity rises along a sigmoid over training.

    Scores start at 0 and learn by the straight-through gradient `dL/dscore = w dL/dw_hat`, which collects what removing
    a weight would have cost; pruned weights get no gradient but their scores do. Sparsity after epoch e of E is
    `target sigmoid(e - E / 2)`, as in the authors' code; their beta is 1, and shorter runs than 20 epochs are stretched
    to 20, so that the target is reached. As there, the learning rate of the scores rises along the same sigmoid: here
    their gradient does, which is the same for SGD and has no effect on Adam. The authors rank the scores of all layers
    together once an epoch; here each layer has its share of the budget and ranks anew in each step.
    """

    reference = "Zhang et al. 2022, Gradient is All You Need (OptG), arXiv 2201.12826"
    config: OptGConfig

    def __init__(self, weight: Tensor, config: OptGConfig, output_dim: int = 0, sparsity: float = 0.0):
        super().__init__(weight, config, output_dim, sparsity)
        self._share = 0.0
        self.score = nn.Parameter(torch.zeros_like(weight, dtype=torch.float32))

    def first_mask(self, weight: Tensor, sparsity: float) -> Tensor:
        return torch.ones_like(weight, dtype=torch.bool)

    @staticmethod
    def share(progress: Progress) -> float:
        """The share of the final sparsity, and of the scores' learning rate, that holds now: 0 to 1."""
        if progress.step >= progress.steps:
            return 1.0
        epochs = max(progress.epochs, STEEPEST)
        return 1.0 / (1.0 + math.exp(-epochs * (progress.step / progress.steps - 0.5)))

    def forward(self, weight: Tensor) -> Tensor:
        return score_masked_weight(weight, self.score, self.kept)

    def begin_step(self, progress: Progress) -> None:
        super().begin_step(progress)
        self._share = self.share(progress)

    def gradient_mask(self, weight: Tensor) -> None:
        """Dense: a score learns whether or not its weight is kept."""

    def regularise(self, weight: nn.Parameter) -> None:
        if self.score.grad is not None:
            self.score.grad *= self._share

    def end_step(self, weight: nn.Parameter, progress: Progress) -> None:
        start = self.start_sparsity
        count = kept_count(weight, start + (self.final_sparsity - start) * self.share(progress))
        score = self.score if start == 0 else self.score.masked_fill(weight == 0, -torch.inf)  # zeros stay
        self.kept.copy_(largest(score, count))

"""Continuous Sparsification (Savarese et al. 2020)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from .base import Sparsifier, register
from .progress import Progress
from .settings import LearnedParameters, Target


@dataclass(frozen=True, kw_only=True)
class ContinuousConfig(LearnedParameters, Target):
    """Continuous Sparsification: a soft mask for each weight, which hardens over training.

    Args:
        penalty: weight of the sum of the mask in the loss.
        final_temperature: beta at the end of training, 1 or more; it starts at 1.
        score_init: every score s at the start.
    """

    method: ClassVar[str] = "continuous"
    trains_with_zeros: ClassVar[bool] = False

    penalty: float = 1e-8
    final_temperature: float = 200.0
    score_init: float = -0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("penalty", 0, math.inf)
        self.check_number("final_temperature", 1, math.inf)
        self.check_number("score_init", -math.inf, math.inf)


@register(ContinuousConfig)
class Continuous(Sparsifier):
    """`w_hat = c w sigmoid(beta s)`: a soft mask per weight that hardens; evaluated and saved is `c w` where `s > 0`.

    `c = 1 / sigmoid(score_init)`, so that training starts at the weights themselves. beta rises exponentially from 1 to
    `final_temperature`; the authors raise it once an epoch, here it rises in each step. There is one round without
    rewinding. The forward is dense in training, whatever the recorded sparsity says, and a model evaluated early is not
    yet the one that trains: with `score_init` below 0 nothing is kept before the scores have moved.
    """

    reference = "Savarese et al. 2020, Winning the Lottery with Continuous Sparsification, arXiv 1912.04427"
    config: ContinuousConfig

    def __init__(self, weight: Tensor, config: ContinuousConfig, output_dim: int = 0, sparsity: float = 0.0):
        super().__init__(weight, config, output_dim, sparsity)
        init = config.score_init
        self.scale = 1.0 + math.exp(-init)
        self.beta = 1.0
        self.score = nn.Parameter(torch.full_like(weight, init, dtype=torch.float32))

    def start_from_zeros(self, weight: Tensor, sparsity: float) -> None:
        super().start_from_zeros(weight, sparsity)
        self.score.copy_(torch.where(weight == 0, -1.0, self.score))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * (self.scale * torch.sigmoid(self.beta * self.score.float())).to(weight.dtype)

    def deployed(self, weight: Tensor) -> Tensor:
        return torch.where(self.mask(weight), self.scale * weight, 0)

    def mask(self, weight: Tensor) -> Tensor:
        return self.score > 0

    def gradient_mask(self, weight: Tensor) -> None:
        """Dense: the mask is soft."""

    def begin_step(self, progress: Progress) -> None:
        super().begin_step(progress)
        self.beta = self.config.final_temperature ** (progress.step / progress.steps)

    def regularise(self, weight: nn.Parameter) -> None:
        if self.score.grad is not None:
            soft = torch.sigmoid(self.beta * self.score)
            self.score.grad += self.config.penalty * self.scale * self.beta * soft * (1.0 - soft)

    def margin(self, weight: Tensor, stride: int) -> Tensor:
        return self.score.flatten()[::stride].float()

    def raise_threshold(self, amount: Tensor) -> None:
        self.score.sub_(amount)

    def metrics(self) -> dict[str, Tensor | float]:
        return super().metrics() | {"beta": self.beta}

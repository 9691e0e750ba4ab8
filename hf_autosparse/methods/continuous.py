"""Continuous Sparsification (Savarese et al. 2020)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..utils.validation import check_number
from .base import LEARNING, TARGET, Options, Progress, Sparsifier, register


@dataclass(frozen=True)
class ContinuousOptions(Options):
    """`penalty`: weight of the sum of the mask in the loss. `temperature`: beta at the end, from 1. `init`: every s."""

    penalty: float = 1e-8
    temperature: float = 200.0
    init: float = -0.01

    def __post_init__(self) -> None:
        check_number("AutoSparseConfig.options['penalty']", self.penalty, 0, math.inf)
        check_number("AutoSparseConfig.options['temperature']", self.temperature, 1, math.inf)
        check_number("AutoSparseConfig.options['init']", self.init, -math.inf, math.inf)


@register
class Continuous(Sparsifier):
    """`w_hat = c w sigmoid(beta s)`: a soft mask per weight that hardens; evaluated and saved is `c w` where `s > 0`.

    `c = 1 / sigmoid(init)`, so that training starts at the weights themselves. beta rises from 1 to `temperature`
    exponentially; the authors raise it once an epoch, here it rises in each step. One round without rewinding. The
    forward is dense in training, whatever the recorded sparsity says, and a model evaluated early is not yet the one
    that trains: with `init` below 0 nothing is kept before the scores have moved.
    """

    name = "continuous"
    reference = "Savarese et al. 2020, Winning the Lottery with Continuous Sparsification, arXiv 1912.04427"
    Options = ContinuousOptions
    reads = LEARNING | TARGET

    def __init__(self, weight: Tensor, config, output_dim: int = 0, sparsity: float | None = None):
        super().__init__(weight, config, output_dim, sparsity)
        init = config.options.init
        self.scale = 1.0 + math.exp(-init)
        self.beta = 1.0
        self.score = nn.Parameter(torch.full_like(weight, init, dtype=torch.float32))

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
        self.beta = self.config.options.temperature ** (progress.step / progress.steps)

    def regularise(self, weight: nn.Parameter) -> None:
        if self.score.grad is not None:
            soft = torch.sigmoid(self.beta * self.score)
            self.score.grad += self.config.options.penalty * self.scale * self.beta * soft * (1.0 - soft)

    def margin(self, weight: Tensor, stride: int) -> Tensor:
        return self.score.flatten()[::stride].float()

    def raise_threshold(self, amount: Tensor) -> None:
        self.score -= amount

    def metrics(self) -> dict[str, Tensor | float]:
        return super().metrics() | {"beta": self.beta}

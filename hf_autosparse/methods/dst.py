"""DST: dynamic sparse training with trainable masked layers (Liu et al. 2020)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..functional import binary_step
from .base import Sparsifier, register
from .progress import Progress
from .settings import LearnedThresholds

FEWEST = 0.01  # a layer that keeps no more than this share of its weights starts over


@dataclass(frozen=True, kw_only=True)
class DSTConfig(LearnedThresholds):
    """DST: a learned hard threshold for each output channel.

    Args:
        penalty: the authors' alpha, the weight of `sum exp(-t)` in the loss, which drives the thresholds up.
    """

    method: ClassVar[str] = "dst"

    penalty: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("penalty", 0, math.inf)


@register(DSTConfig)
class DST(Sparsifier):
    """`w_hat = w step(|w| - t)`, one threshold t per output channel, from 0; the step has an estimated derivative.

    Both the weights and the thresholds learn through the mask. A layer that keeps 1 % of its weights or less has its
    thresholds set back to 0 after the step, as in the authors' code. Their code decays the thresholds like the weights;
    here by `threshold_weight_decay`, 0 by default.
    """

    reference = "Liu et al. 2020, Dynamic Sparse Training, arXiv 2005.06870"
    config: DSTConfig

    def __init__(self, weight: Tensor, config: DSTConfig, output_dim: int = 0, sparsity: float = 0.0):
        super().__init__(weight, config, output_dim, sparsity)
        self._output_dim = output_dim
        self.threshold = nn.Parameter(torch.zeros(weight.shape[output_dim], device=weight.device))

    def _distance(self, weight: Tensor) -> Tensor:
        """`|w| - t`, float32."""
        shape = [1] * weight.dim()
        shape[self._output_dim] = -1
        return weight.abs().float() - self.threshold.float().view(shape)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * binary_step(self._distance(weight)).to(weight.dtype)

    def mask(self, weight: Tensor) -> Tensor:
        return self._distance(weight) > 0

    def gradient_mask(self, weight: Tensor) -> Tensor:
        """The derivative of the step reaches 1 below and above the threshold."""
        return self.mask(weight) | (self._distance(weight).abs() <= 1.0)

    def regularise(self, weight: nn.Parameter) -> None:
        if self.threshold.grad is not None:
            self.threshold.grad -= self.config.penalty * torch.exp(-self.threshold)

    def end_step(self, weight: nn.Parameter, progress: Progress) -> None:
        dying = self.mask(weight).count_nonzero() <= FEWEST * weight.numel()
        self.threshold.masked_fill_(dying, 0.0)

    def margin(self, weight: Tensor, stride: int) -> Tensor:
        return self._distance(weight).flatten()[::stride]

    def raise_threshold(self, amount: Tensor) -> None:
        self.threshold.add_(amount)

    def metrics(self) -> dict[str, Tensor | float]:
        return super().metrics() | {"mean_threshold": self.threshold.detach().float().mean()}

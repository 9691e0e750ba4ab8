"""LTP: learned threshold pruning (Azarian et al. 2020)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from .base import Sparsifier, register
from .settings import LearnedThresholds


@dataclass(frozen=True, kw_only=True)
class LTPConfig(LearnedThresholds):
    """LTP: a learned threshold for each layer, with a soft mask in training.

    Args:
        temperature: width of the soft mask, in units of the mean square of the layer's initial weights.
        penalty: weight of the soft count of kept weights in the loss, which drives the thresholds up.
    """

    method: ClassVar[str] = "ltp"
    trains_with_zeros: ClassVar[bool] = False

    temperature: float = 1e-3
    penalty: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("temperature", 0, math.inf, low_open=True)
        self.check_number("penalty", 0, math.inf)


@register(LTPConfig)
class LTP(Sparsifier):
    """`w_hat = w sigmoid((w^2 - tau) / T)`, one learned tau per layer, from 0; what is saved is w where w^2 > tau.

    As the paper proposes, a weight's gradient is `dL/dw_hat sigmoid(...)`: the derivative of the sigmoid by w is left
    out, which would hold weights on their side of the threshold, and so is that of the penalty. tau and T are in units
    of `scale`, the mean square of the layer's initial weights, so that one learning rate suits all layers; the paper
    gives each layer's threshold a rate of its own. No code of the authors was at hand: `penalty` is to be chosen for
    the sparsity wanted. The forward is dense in training, whatever the recorded sparsity says.
    """

    reference = "Azarian et al. 2020, Learned Threshold Pruning, arXiv 2003.00075"
    config: LTPConfig
    scale: Tensor

    def __init__(self, weight: Tensor, config: LTPConfig, output_dim: int = 0, sparsity: float = 0.0):
        super().__init__(weight, config, output_dim, sparsity)
        scale = weight.detach().float().square().mean().view(1)
        self.register_buffer("scale", scale)
        self.threshold = nn.Parameter(torch.zeros(1, device=weight.device))

    def _distance(self, weight: Tensor) -> Tensor:
        """`(w^2 - tau) / T`, float32."""
        squares = weight.float().square() / self.scale.float()
        return (squares - self.threshold.float()) / self.config.temperature

    def forward(self, weight: Tensor) -> Tensor:
        return weight * torch.sigmoid(self._distance(weight.detach())).to(weight.dtype)

    def deployed(self, weight: Tensor) -> Tensor:
        return torch.where(self.mask(weight), weight, 0)

    def mask(self, weight: Tensor) -> Tensor:
        return self._distance(weight) > 0

    def gradient_mask(self, weight: Tensor) -> None:
        """Dense: the mask is soft."""

    def regularise(self, weight: nn.Parameter) -> None:
        if self.threshold.grad is not None:
            soft = torch.sigmoid(self._distance(weight))
            pull = (soft * (1.0 - soft)).sum() / self.config.temperature
            self.threshold.grad -= self.config.penalty * pull

    def margin(self, weight: Tensor, stride: int) -> Tensor:
        return weight.flatten()[::stride].float().square() / self.scale.float() - self.threshold.float()

    def raise_threshold(self, amount: Tensor) -> None:
        self.threshold.add_(amount)

    def metrics(self) -> dict[str, Tensor | float]:
        """`mean_threshold`: the magnitude below which weights are pruned."""
        return super().metrics() | {"mean_threshold": (self.threshold.detach() * self.scale).clamp(min=0).sqrt().mean()}

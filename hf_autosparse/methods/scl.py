"""SCL: sparse connectivity learning (Tang et al. 2022)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..functional import score_masked_weight
from .base import Sparsifier, register
from .settings import LearnedParameters, Target


@dataclass(frozen=True, kw_only=True)
class SCLConfig(LearnedParameters, Target):
    """SCL: a learned mask variable for each weight.

    Args:
        penalty: weight of the number of connections in the loss.
        score_init: every mask variable at the start, above 0.
    """

    method: ClassVar[str] = "scl"

    penalty: float = 1e-3
    score_init: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("penalty", 0, math.inf)
        self.check_number("score_init", 0, math.inf, low_open=True)


@register(SCLConfig)
class SCL(Sparsifier):
    """`w_hat = w` where the weight's mask variable is positive; both learn, the variable straight through the step.

    After the paper: the step function, the identity estimator `dL/dm = w dL/dw_hat`, its normalisation per output
    feature, and the number of connections as the regulariser, which by the same estimator pulls every mask variable
    down at a constant rate. No code of the authors was at hand: the norm (Euclidean, over a feature's weights) and both
    defaults were chosen here, and `penalty` is to be chosen for the sparsity wanted. The weight itself gets no gradient
    where it is pruned; its mask variable does, so that no layer is lost for good.
    """

    reference = "Tang et al. 2022, Automatic Sparse Connectivity Learning, arXiv 2201.05020"
    config: SCLConfig

    def __init__(self, weight: Tensor, config: SCLConfig, output_dim: int = 0, sparsity: float = 0.0):
        super().__init__(weight, config, output_dim, sparsity)
        self._inputs = [dim for dim in range(weight.dim()) if dim != output_dim]
        self.score = nn.Parameter(torch.full_like(weight, config.score_init, dtype=torch.float32))

    def start_from_zeros(self, weight: Tensor, sparsity: float) -> None:
        super().start_from_zeros(weight, sparsity)
        self.score.copy_(torch.where(weight == 0, -1.0, self.score))

    def forward(self, weight: Tensor) -> Tensor:
        return score_masked_weight(weight, self.score, self.mask(weight))

    def mask(self, weight: Tensor) -> Tensor:
        return self.score > 0

    def gradient_mask(self, weight: Tensor) -> None:
        """Dense: a mask variable learns whether or not its weight is kept."""

    def regularise(self, weight: nn.Parameter) -> None:
        if self.score.grad is not None:
            norm = torch.linalg.vector_norm(self.score.grad, dim=self._inputs, keepdim=True)
            self.score.grad /= norm.clamp(min=torch.finfo(norm.dtype).tiny)
            self.score.grad += self.config.penalty

    def margin(self, weight: Tensor, stride: int) -> Tensor:
        return self.score.flatten()[::stride].float()

    def raise_threshold(self, amount: Tensor) -> None:
        self.score.sub_(amount)

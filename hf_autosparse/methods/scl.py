"""SCL: sparse connectivity learning (Tang et al. 2022)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..functional import score_masked_weight
from ..utils.validation import check_number
from .base import LEARNING, TARGET, Options, Sparsifier, register


@dataclass(frozen=True)
class SCLOptions(Options):
    """`penalty`: weight of the number of connections in the loss. `init`: every mask variable at the start."""

    penalty: float = 1e-3
    init: float = 0.01

    def __post_init__(self) -> None:
        check_number("AutoSparseConfig.options['penalty']", self.penalty, 0, math.inf)
        check_number("AutoSparseConfig.options['init']", self.init, 0, math.inf, low_open=True)


@register
class SCL(Sparsifier):
    """`w_hat = w` where a mask variable of its own is positive; both learn, the latter straight through the step.

    After the paper: the step function, the identity estimator `dL/dm = w dL/dw_hat`, its normalisation per output
    feature, and the number of connections as the regulariser, which by the same estimator pulls every mask variable
    down at a constant rate. No code of the authors was at hand: the norm (Euclidean, over a feature's weights) and both
    defaults were chosen here, and `penalty` is to be chosen for the sparsity wanted. The weight itself gets no gradient
    where it is pruned; its mask variable does, so that no layer is lost for good.
    """

    name = "scl"
    reference = "Tang et al. 2022, Automatic Sparse Connectivity Learning, arXiv 2201.05020"
    Options = SCLOptions
    reads = LEARNING | TARGET

    def __init__(self, weight: Tensor, config, output_dim: int = 0, sparsity: float | None = None):
        super().__init__(weight, config, output_dim, sparsity)
        self._inputs = [dim for dim in range(weight.dim()) if dim != output_dim]
        self.score = nn.Parameter(torch.full_like(weight, config.options.init, dtype=torch.float32))

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
            self.score.grad += self.config.options.penalty

    def margin(self, weight: Tensor, stride: int) -> Tensor:
        return self.score.flatten()[::stride].float()

    def raise_threshold(self, amount: Tensor) -> None:
        self.score -= amount

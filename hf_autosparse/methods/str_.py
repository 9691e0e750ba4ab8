"""STR: soft threshold reparameterization (Kusupati et al. 2020), which is AutoSparse with alpha 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import register
from .soft_threshold import SoftThreshold, SoftThresholdSparsifier


@dataclass(frozen=True, kw_only=True)
class STRConfig(SoftThreshold):
    """STR: learned thresholds; pruned weights get no gradient.

    The authors drive sparsity by weight decay on s (`threshold_weight_decay`, equal to the weights' decay in their
    recipes) from a very negative start (`threshold_init` -3200 for 90 % on ResNet-50), and make the last layer sparse
    too.
    """

    method: ClassVar[str] = "str"


@register(STRConfig)
class STR(SoftThresholdSparsifier):
    """`w_hat = sign(w) max(|w| - sigmoid(s), 0)`: pruned weights get no gradient, and the threshold is learned."""

    reference = "Kusupati et al. 2020, Soft Threshold Weight Reparameterization, arXiv 2002.03231"

    def __init__(self, weight: Tensor, config: STRConfig, output_dim: int = 0, sparsity: float = 0.0):
        super().__init__(weight, config, output_dim, sparsity)
        self.alpha = 0.0

"""STR: soft threshold reparameterization (Kusupati et al. 2020), which is AutoSparse with alpha 0."""

from __future__ import annotations

from .autosparse import AutoSparse
from .base import TARGET, THRESHOLDS, register


@register
class STR(AutoSparse):
    """`w_hat = sign(w) max(|w| - sigmoid(s), 0)`: pruned weights get no gradient, and the threshold is learned.

    The authors drive sparsity by weight decay on s (`threshold_weight_decay`, equal to the weights' decay in their
    recipes) from a very negative start (`threshold_init` -3200 for 90 % on ResNet-50), and make the last layer sparse
    too.
    """

    name = "str"
    reference = "Kusupati et al. 2020, Soft Threshold Weight Reparameterization, arXiv 2002.03231"
    reads = TARGET | THRESHOLDS
    default_alpha = (0.0, "fixed")

    def __init__(self, weight, config, output_dim: int = 0, sparsity: float | None = None):
        super().__init__(weight, config, output_dim, sparsity)
        self.alpha = 0.0

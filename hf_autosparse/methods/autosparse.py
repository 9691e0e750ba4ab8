"""AutoSparse: a learned soft threshold per layer with Gradient Annealing (arXiv 2304.06941, eq. 1-4, 7-9)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..functional import top_magnitude_mask
from .base import register
from .schedules import AlphaSchedule
from .settings import Annealing
from .soft_threshold import SoftThreshold, SoftThresholdSparsifier


@dataclass(frozen=True, kw_only=True)
class AutoSparseConfig(SoftThreshold, Annealing):
    """AutoSparse: learned thresholds with Gradient Annealing.

    Args:
        backward_sparsity: eq. 8: the weight gradient is restricted to the `1 - backward_sparsity` largest weights and
            the active ones; None for no restriction.
        alpha_init: 0.75, the paper's.
        alpha_schedule: "sigmoid-cosine", the paper's.
    """

    method: ClassVar[str] = "autosparse"

    backward_sparsity: float | None = None
    alpha_init: float = 0.75
    alpha_schedule: AlphaSchedule = "sigmoid-cosine"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("backward_sparsity", 0, 1, optional=True, high_open=True)


@register(AutoSparseConfig)
class AutoSparse(SoftThresholdSparsifier):
    """`w_hat = sign(w) max(|w| - T, 0)`, `T = sigmoid(s)`; pruned weights get alpha times their gradient.

    The paper's threshold is per layer; `threshold_granularity="channel"` is an extension. `alpha` enters the backward
    pass only. `begin_step` derives it from training progress; it is never stored.
    """

    reference = "Kundu et al. 2023, AutoSparse, arXiv 2304.06941"
    config: AutoSparseConfig

    def __init__(self, weight: Tensor, config: AutoSparseConfig, output_dim: int = 0, sparsity: float = 0.0):
        super().__init__(weight, config, output_dim, sparsity)
        self.backward_sparsity = config.backward_sparsity

    def gradient_mask(self, weight: Tensor) -> Tensor | None:
        """The active set once alpha is 0; before, the set B of eq. 8, or all weights without `backward_sparsity`."""
        if self.alpha == 0 or self.backward_sparsity is None:
            return super().gradient_mask(weight)
        return self.mask(weight) | top_magnitude_mask(weight.abs(), 1.0 - self.backward_sparsity)

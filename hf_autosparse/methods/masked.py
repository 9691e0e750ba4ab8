"""What the methods with an explicit mask share."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ..functional import masked_weight
from ..utils.validation import check_count, check_number
from .base import Options, Progress, Sparsifier


class MaskedSparsifier(Sparsifier):
    """`w_hat = w * kept`; pruned weights get alpha times their gradient. `kept`: bool buffer, the weight's shape."""

    def __init__(self, weight: Tensor, config, output_dim: int = 0, sparsity: float | None = None):
        super().__init__(weight, config, output_dim, sparsity)
        self.register_buffer("kept", self.first_mask(weight.detach(), sparsity))

    def first_mask(self, weight: Tensor, sparsity: float | None) -> Tensor:
        """The mask before training."""
        raise NotImplementedError

    def forward(self, weight: Tensor) -> Tensor:
        return masked_weight(weight, self.kept, self.alpha or 0.0)

    def mask(self, weight: Tensor) -> Tensor:
        return self.kept


@dataclass(frozen=True)
class Periodic(Options):
    """`every`: optimizer steps between changes of the mask. `until`: fraction of training after which none comes."""

    every: int = 100
    until: float = 0.75

    def __post_init__(self) -> None:
        check_count("AutoSparseConfig.options['every']", self.every)
        check_number("AutoSparseConfig.options['until']", self.until, 0, 1, low_open=True)

    def progress(self, progress: Progress) -> float:
        """How far the changing of masks has come, in [0, 1]; it ends at `until`."""
        return min(1.0, progress.step / (self.until * progress.steps))

    def due(self, progress: Progress) -> bool:
        """Whether the mask changes after step `progress.step`."""
        return progress.step > 0 and progress.step % self.every == 0 and self.progress(progress) < 1.0

    def ends(self, progress: Progress) -> bool:
        """Whether this is the step at which `until` is reached; it comes in every run."""
        return progress.step == max(1, round(self.until * progress.steps))


def kept_count(weight: Tensor, sparsity: float) -> int:
    """How many weights a layer keeps at `sparsity`, rounded, and never none."""
    return max(1, weight.numel() - math.floor(sparsity * weight.numel() + 0.5))

"""RigL: rigging the lottery (Evci et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import register
from .progress import Progress
from .set_ import SET, DropAndGrow


@dataclass(frozen=True, kw_only=True)
class RigLConfig(DropAndGrow):
    """RigL: drops the smallest weights and grows where the gradient is largest."""

    method: ClassVar[str] = "rigl"


@register(RigLConfig)
class RigL(SET):
    """SET that grows where the gradient of the effective weight is largest.

    The dense gradient is collected only in the step that changes the mask, over all its micro-batches and processes,
    and is forgotten at once. In the theoretical FLOPs it counts once in `every` steps while masks change.
    """

    reference = "Evci et al. 2020, Rigging the Lottery, arXiv 1911.11134"
    config: RigLConfig
    _at_growth: Tensor | None = None
    _dense_share = 0.0  # the share of the steps that needs a dense gradient

    def needs_gradient(self, progress: Progress) -> bool:
        return self.config.is_due(progress)

    def begin_step(self, progress: Progress) -> None:
        super().begin_step(progress)
        changes = self.config.fraction_done(progress.after_step()) < 1.0
        self._dense_share = 1.0 / self.config.every if changes else 0.0

    def gradient_count(self, weight: Tensor) -> Tensor:
        active = self.kept.count_nonzero()
        return active + ((weight.numel() - active) * self._dense_share).round().long()

    def growth_score(self, weight: Tensor, progress: Progress) -> Tensor | None:
        gradient = self.take_gradient(weight)
        if not gradient.any():
            return None
        self._at_growth = gradient
        return gradient.abs()

    def gradient_at_growth(self) -> Tensor | None:
        gradient, self._at_growth = self._at_growth, None
        return gradient

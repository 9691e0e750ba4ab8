"""RigL: rigging the lottery (Evci et al. 2020)."""

from __future__ import annotations

from torch import Tensor, nn

from .base import Progress, register
from .set_ import SET


@register
class RigL(SET):
    """SET that grows where the gradient of the effective weight is largest.

    The dense gradient is collected only in the step that changes the mask, over all its micro-batches and processes,
    and is forgotten at once. In the theoretical FLOPs it counts once in `every` steps while masks change.
    """

    name = "rigl"
    reference = "Evci et al. 2020, Rigging the Lottery, arXiv 1911.11134"
    _dense_share = 0.0  # of the steps, those that need a dense gradient

    def needs_gradient(self, progress: Progress) -> bool:
        return self.config.options.due(progress)

    def begin_step(self, progress: Progress) -> None:
        super().begin_step(progress)
        options = self.config.options
        self._dense_share = 1.0 / options.every if options.progress(progress.after_step()) < 1.0 else 0.0

    def gradient_count(self, weight: Tensor) -> Tensor:
        active = self.kept.count_nonzero()
        return active + ((weight.numel() - active) * self._dense_share).round().long()

    def growth_score(self, weight: nn.Parameter, progress: Progress) -> Tensor | None:
        gradient = self.take_gradient(weight)
        return gradient.abs() if gradient.any() else None

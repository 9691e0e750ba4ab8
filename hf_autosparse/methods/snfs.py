"""SNFS: sparse networks from scratch, or sparse momentum (Dettmers & Zettlemoyer 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from .base import register
from .progress import Progress
from .set_ import SET, DropAndGrow


@dataclass(frozen=True, kw_only=True)
class SNFSConfig(DropAndGrow):
    """SNFS: drops the smallest weights and grows where the average gradient is largest.

    Args:
        momentum: decay of the average of gradients, in [0, 1).
    """

    method: ClassVar[str] = "snfs"

    momentum: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("momentum", 0, 1, high_open=True)


@register(SNFSConfig)
class SNFS(SET):
    """SET that grows where the average of past gradients of the effective weight is largest.

    `m = momentum m + (1 - momentum) g` in every step while masks change, so the weight gradient is dense until then and
    its average (float32, in every checkpoint) is held on purpose. After RigL's code, which made the figures that the
    later papers cite: its schedule, an average of its own beside the optimizer's, and each layer keeps its number of
    weights, where the original moves weights between layers once an epoch.
    """

    reference = "Dettmers & Zettlemoyer 2019, Sparse Networks from Scratch, arXiv 1907.04840"
    config: SNFSConfig
    momentum: Tensor

    def __init__(self, weight: Tensor, config: SNFSConfig, output_dim: int = 0, sparsity: float = 0.0):
        super().__init__(weight, config, output_dim, sparsity)
        self.register_buffer("momentum", torch.zeros_like(weight, dtype=torch.float32))

    def needs_gradient(self, progress: Progress) -> bool:
        return self.config.fraction_done(progress) < 1.0

    def gradient_mask(self, weight: Tensor) -> Tensor | None:
        return None if self.collects_gradient else self.kept

    def growth_score(self, weight: Tensor, progress: Progress) -> Tensor:
        return self.momentum.abs()

    def gradient_at_growth(self) -> Tensor:
        return self.momentum

    def end_step(self, weight: nn.Parameter, progress: Progress) -> Tensor | None:
        if self.needs_gradient(progress):
            self.momentum.lerp_(self.take_gradient(weight).float(), 1.0 - self.config.momentum)
        return super().end_step(weight, progress)

"""SET: sparse evolutionary training (Mocanu et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from ..functional import drop_and_grow
from .base import register
from .masked import RandomMaskSparsifier
from .progress import Progress
from .schedules import cosine_decay
from .settings import Budget, Periodic


@dataclass(frozen=True, kw_only=True)
class DropAndGrow(Budget, Periodic):
    """Weights are dropped and as many grown elsewhere.

    Args:
        drop_fraction: share of the kept weights that the first change replaces; it decays to 0 along a cosine.
    """

    drop_fraction: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("drop_fraction", 0, 1, low_open=True)


@dataclass(frozen=True, kw_only=True)
class SETConfig(DropAndGrow):
    """SET: drops the smallest weights and grows at random."""

    method: ClassVar[str] = "set"


@register(SETConfig)
class SET(RandomMaskSparsifier):
    """Random sparse start; every `every` steps the smallest kept weights are dropped and as many grown at random.

    Grown weights start at 0 without optimizer state. Schedule and fraction are RigL's, whose code made the published
    figures of SET on ImageNet; the original drops by sign, once an epoch. Pruned weights get no gradient.
    """

    reference = "Mocanu et al. 2018, Sparse Evolutionary Training, arXiv 1707.04780"
    config: DropAndGrow

    def growth_score(self, weight: Tensor, progress: Progress) -> Tensor | None:
        """The score whose largest entries are grown: non-negative, the weight's shape; None to grow nothing."""
        return self.random_score(weight, progress.step)

    def end_step(self, weight: nn.Parameter, progress: Progress) -> Tensor | None:
        if not self.config.is_due(progress) or (score := self.growth_score(weight, progress)) is None:
            return None
        fraction = self.config.drop_fraction * cosine_decay(self.config.fraction_done(progress))
        count = round(fraction * int(self.kept.sum()))
        count = min(count, self.kept.numel() - int(self.kept.sum()))  # nearly dense layers have less to grow
        kept = drop_and_grow(weight.abs(), self.kept, score, count)
        grown = kept & ~self.kept
        self.kept.copy_(kept)
        weight.masked_fill_(grown, 0)
        return grown

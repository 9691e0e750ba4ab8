"""SET: sparse evolutionary training (Mocanu et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..functional import drop_and_grow, largest
from ..utils.validation import check_number
from .base import BUDGET, Progress, register
from .masked import MaskedSparsifier, Periodic, kept_count
from .schedules import cosine_decay


@dataclass(frozen=True)
class DropAndGrow(Periodic):
    """`drop_fraction`: share of the kept weights that the first change replaces; it decays to 0 along a cosine."""

    drop_fraction: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("AutoSparseConfig.options['drop_fraction']", self.drop_fraction, 0, 1, low_open=True)


@register
class SET(MaskedSparsifier):
    """Random sparse start; every `every` steps the smallest kept weights are dropped and as many grown at random.

    Grown weights start at 0 without optimizer state. Schedule and fraction are RigL's, whose code made the published
    figures of SET on ImageNet; the original drops by sign, once an epoch. Pruned weights get no gradient.
    """

    name = "set"
    reference = "Mocanu et al. 2018, Sparse Evolutionary Training, arXiv 1707.04780"
    Options = DropAndGrow
    reads = BUDGET

    def first_mask(self, weight: Tensor, sparsity: float | None) -> Tensor:
        # Drawn once from torch's generator and kept: the same on every process and after a resume.
        self.register_buffer("seed", torch.randint(2**31, (1,)))
        return largest(self.random_score(weight, step=0), kept_count(weight, sparsity))

    def random_score(self, weight: Tensor, step: int) -> Tensor:
        """Uniform numbers that depend on the layer's seed and the step alone, drawn on the CPU: equal on any device."""
        generator = torch.Generator().manual_seed(int(self.seed) + step)
        return torch.rand(weight.shape, generator=generator).to(weight.device)

    def growth_score(self, weight: Tensor, progress: Progress) -> Tensor | None:
        """What growth goes by, non-negative, the weight's shape; None where nothing speaks for any weight."""
        return self.random_score(weight, progress.step)

    def end_step(self, weight: nn.Parameter, progress: Progress) -> Tensor | None:
        options = self.config.options
        if not options.due(progress) or (score := self.growth_score(weight, progress)) is None:
            return None
        fraction = options.drop_fraction * cosine_decay(options.progress(progress))
        count = round(fraction * int(self.kept.sum()))
        count = min(count, self.kept.numel() - int(self.kept.sum()))  # nearly dense layers have less to grow
        kept = drop_and_grow(weight.abs(), self.kept, score, count)
        grown = kept & ~self.kept
        self.kept.copy_(kept)
        weight.masked_fill_(grown, 0)
        return grown

"""ITOP: in-time over-parameterization (Liu et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from torch import Tensor, nn

from .base import register
from .progress import Progress
from .rigl import RigL, RigLConfig

Growth = Literal["gradient", "random"]


@dataclass(frozen=True, kw_only=True)
class ITOPConfig(RigLConfig):
    """ITOP: rare changes of many weights, to the end of training.

    Args:
        growth: "gradient" (the authors' RigL-ITOP) or "random" (SET-ITOP, for which they give `every` as 1500).
    """

    method: ClassVar[str] = "itop"

    every: int = 4000
    until: float = 1.0
    drop_fraction: float = 0.5
    growth: Growth = "gradient"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_choice("growth", get_args(Growth))


@register(ITOPConfig)
class ITOP(RigL):
    """RigL or SET that explores on: rare changes of half the kept weights, to the end, so that each gets time to train.

    `every` counts optimizer steps and must fit the run: a run of fewer than 4000 steps explores nothing by default. The
    metric `explored` is the paper's rate R_s: the share of weights that were active at some time.
    """

    reference = "Liu et al. 2021, In-Time Over-Parameterization, arXiv 2102.02887"
    config: ITOPConfig
    explored: Tensor

    def __init__(self, weight: Tensor, config: ITOPConfig, output_dim: int = 0, sparsity: float = 0.0):
        super().__init__(weight, config, output_dim, sparsity)
        self.register_buffer("explored", self.kept.clone())

    def start_from_zeros(self, weight: Tensor, sparsity: float) -> None:
        super().start_from_zeros(weight, sparsity)
        self.explored.copy_(self.kept)

    def needs_gradient(self, progress: Progress) -> bool:
        return self.config.growth == "gradient" and super().needs_gradient(progress)

    def gradient_count(self, weight: Tensor) -> Tensor:
        if self.config.growth == "random":
            return self.kept.count_nonzero()
        return super().gradient_count(weight)

    def growth_score(self, weight: Tensor, progress: Progress) -> Tensor | None:
        if self.config.growth == "random":
            return self.random_score(weight, progress.step)
        return super().growth_score(weight, progress)

    def end_step(self, weight: nn.Parameter, progress: Progress) -> Tensor | None:
        grown = super().end_step(weight, progress)
        self.explored |= self.kept
        return grown

    def metrics(self) -> dict[str, Tensor | float]:
        return super().metrics() | {"explored": self.explored.float().mean()}

"""Groups of settings that several methods share. A method's configuration inherits those that its method reads.

A group also says what a method can do, and other rooms ask for it by `isinstance`: the sparsifier of a `Target` has
`margin` and `raise_threshold`, that of a `Budget` reaches the sparsity of each layer that it is given, those with
`LearnedParameters` have parameters of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

from .config import SparseConfig
from .distributions import SPARSITY_DISTRIBUTIONS, Distribution, Shapes, not_below
from .progress import Progress
from .schedules import AlphaSchedule, alpha_at

AlphaUpdate = Literal["epoch", "step"]


@dataclass(frozen=True, kw_only=True)
class Annealing(SparseConfig):
    """Pruned weights receive the share alpha of their gradient, and alpha may fall over training.

    Args:
        alpha_init: alpha at the start, in [0, 1]. 0: pruned weights get no gradient; 1: the straight-through estimator.
        alpha_schedule: "fixed", "linear", "cosine" (eq. 2), "sigmoid" (3), "sigmoid-cosine" (4), "exponential" (9).
        alpha_beta: decay rate per epoch of the exponential schedule.
        alpha_epochs: length of the schedule in epochs; None for the whole training. The exponential one has none.
        alpha_zero_epoch: alpha is cut to 0 from this epoch (counted from 0) on; None for never.
        alpha_update: "epoch": alpha changes at the start of every epoch (the paper); "step": in every step.
    """

    alpha_init: float = 1.0
    alpha_schedule: AlphaSchedule = "fixed"
    alpha_beta: float = 1.0
    alpha_epochs: float | None = None
    alpha_zero_epoch: float | None = None
    alpha_update: AlphaUpdate = "epoch"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("alpha_init", 0, 1)
        self.check_choice("alpha_schedule", get_args(AlphaSchedule))
        self.check_number("alpha_beta", 0, math.inf)
        self.check_number("alpha_epochs", 0, math.inf, optional=True, low_open=True)
        self.check_number("alpha_zero_epoch", 0, math.inf, optional=True)
        self.check_choice("alpha_update", get_args(AlphaUpdate))

    def alpha_at(self, progress: Progress) -> float:
        """Alpha in the step that follows `progress`."""
        return alpha_at(
            self.alpha_schedule,
            progress.epoch if self.alpha_update == "step" else float(int(progress.epoch + 1e-9)),
            alpha_init=self.alpha_init,
            length=self.alpha_epochs or progress.epochs,
            beta=self.alpha_beta,
            zero_epoch=self.alpha_zero_epoch,
        )


@dataclass(frozen=True, kw_only=True)
class LearnedParameters(SparseConfig):
    """The sparsifiers have parameters that learn: thresholds, or a score for each weight.

    Args:
        threshold_lr: their learning rate; None for that of the weights. It follows the same scheduler.
        threshold_weight_decay: their weight decay. AutoSparse's and STR's s is negative, so decay pulls the threshold
            `sigmoid(s)` towards 1/2 and raises sparsity.
        clip_thresholds: whether they count in, and are scaled by, gradient clipping.
    """

    threshold_lr: float | None = None
    threshold_weight_decay: float = 0.0
    clip_thresholds: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("threshold_lr", 0, math.inf, optional=True)
        self.check_number("threshold_weight_decay", 0, math.inf)
        self.check_boolean("clip_thresholds")


@dataclass(frozen=True, kw_only=True)
class Target(SparseConfig):
    """The method finds its own sparsity, or is held at a target and finds how the layers share it.

    Args:
        target_sparsity: the sparsity of all sparse layers together at the end of training; None for none. The trainers
            and `AutoSparseCallback` hold it.
        target_ramp: fraction of the training from which on the target is held, in [0, 1]. Before, the range of allowed
            sparsities narrows from [0, 1] to the target.
    """

    target_sparsity: float | None = None
    target_ramp: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("target_sparsity", 0, 1, optional=True, high_open=True)
        self.check_number("target_ramp", 0, 1)
        if self.target_sparsity is None and self.target_ramp != Target.target_ramp:
            raise ValueError(
                f"{self._label('target_ramp')} = {self.target_ramp!r} has no effect without target_sparsity: give the"
                " wanted fraction of zeros, such as 0.8, or leave it out"
            )


@dataclass(frozen=True, kw_only=True)
class LearnedThresholds(LearnedParameters, Target):
    """The method learns thresholds, which may run away.

    Args:
        max_layer_sparsity: a layer that passes this sparsity is reported by name and held there.
    """

    max_layer_sparsity: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("max_layer_sparsity", 0, 1, low_open=True, high_open=True)
        if self.target_sparsity is not None and self.target_sparsity > self.max_layer_sparsity:
            raise self.reject("target_sparsity", f"a sparsity up to max_layer_sparsity = {self.max_layer_sparsity}")

    @property
    def sparsity_limit(self) -> float:
        return self.max_layer_sparsity


@dataclass(frozen=True, kw_only=True)
class Budget(SparseConfig):
    """Each layer has a fixed share of the sparsity, which the method reaches by itself.

    Args:
        target_sparsity: the sparsity of all sparse layers together.
        sparsity_distribution: how the layers share it: "uniform", or "erk" (small layers denser).
    """

    target_sparsity: float
    sparsity_distribution: Distribution = "uniform"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("target_sparsity", 0, 1, high_open=True)
        self.check_choice("sparsity_distribution", get_args(Distribution))

    def layer_sparsities(self, shapes: Shapes, least: Mapping[str, float] = MappingProxyType({})) -> dict[str, float]:
        distribution = SPARSITY_DISTRIBUTIONS[self.sparsity_distribution]
        return not_below(distribution, shapes, self.target_sparsity, least)


@dataclass(frozen=True, kw_only=True)
class Periodic(SparseConfig):
    """The mask changes from time to time.

    Args:
        every: optimizer steps between two changes of the mask.
        until: fraction of the training after which the mask stays, in (0, 1].
    """

    every: int = 100
    until: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_count("every")
        self.check_number("until", 0, 1, low_open=True)

    def fraction_done(self, progress: Progress) -> float:
        """The part of the phase of changes that is over, in [0, 1]; 1 from `until` on."""
        return min(1.0, progress.step / (self.until * progress.steps))

    def is_due(self, progress: Progress) -> bool:
        """Whether the mask changes after step `progress.step`."""
        return progress.step > 0 and progress.step % self.every == 0 and self.fraction_done(progress) < 1.0

    def is_last(self, progress: Progress) -> bool:
        """Whether this is the step at which `until` is reached; every run has exactly one."""
        return progress.step == max(1, round(self.until * progress.steps))

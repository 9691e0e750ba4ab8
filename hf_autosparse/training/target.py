"""Hit a target: methods that learn thresholds or masks end at `target_sparsity`, their layers still sharing it freely.

A target is held by one shift of all thresholds by the same amount, each in its method's own units. At the start any
sparsity is allowed; the allowed range narrows to the target, which it reaches at the fraction `ramp` of the run: fast
at first and slowly at last, as gradual pruning does (Zhu and Gupta 2017). Whenever the sparsity of all sparse layers
together leaves the range, the shift takes it back to the nearer end. Which layer prunes how much is left to learning.
docs/methods.md compares this with a linear range and with a feedback controller.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor, nn

from ..functional import boundary, sampling_stride
from ..layers.sparse import SparseLayer
from ..layers.sparsify import sparsity
from ..methods import Budget, Progress, SparseConfig, Target

INTERVAL = 4  # optimizer steps between two looks
TOLERANCE = 0.005  # of the sparsity: between two looks it drifts, and budgets are rounded to whole weights
SAMPLE = 2**19  # weights looked at, about; in the last step all are


@torch.no_grad()
def hold_target(layers: Collection[SparseLayer], target: float | None, ramp: float, progress: Progress) -> None:
    """Shift the layers' thresholds if their sparsity is outside `allowed_range`. Called after each optimizer step.

    It depends on weights, thresholds and progress alone: resumed and accumulated runs do the same, and so does every
    process. Nothing is transferred from the device.

    Args:
        layers: at least one; their sparsifiers have `margin` and `raise_threshold`.
        target: fraction of zeros of all their weights together, in [0, 1); None to hold only what they started with.
        ramp: fraction of the run from which on the target is held, in [0, 1].
        progress: counts the step in.
    """
    last = progress.step >= progress.steps
    count = sum(layer.weight.numel() for layer in layers)
    start = sum(layer.sparsifier.start_sparsity * layer.weight.numel() for layer in layers) / count
    # Zeros that are there grow back within a step or two.
    if progress.step % INTERVAL and not last and start == 0:
        return
    stride = 1 if last else sampling_stride(count, SAMPLE)
    margins = torch.cat([_margin(layer, stride) for layer in layers])
    allowed = (start, 1.0) if target is None else allowed_range(target, ramp, progress.step / progress.steps, start)
    low, high = (boundary(margins, round(sparsity * margins.numel())) for sparsity in allowed)
    shift = low.clamp(min=0).minimum(high)  # the nearest to 0 with which the sparsity lies between both
    for layer in layers:
        layer.sparsifier.raise_threshold(shift)


def allowed_range(target: float, ramp: float, done: float, start: float = 0.0) -> tuple[float, float]:
    """The least and the greatest sparsity allowed once the fraction `done` of the run is over.

    Args:
        start: the sparsity at the start of the run; a target below it becomes this.
    """
    target = max(target, start)
    share = min(1.0, done / ramp) if ramp > 0 else 1.0
    narrowed = 1.0 - (1.0 - share) ** 3
    return start + narrowed * (target - start), 1.0 - narrowed * (1.0 - target)


def is_held(model: nn.Module, config: SparseConfig) -> bool:
    """Whether a model is as sparse as its configuration's `target_sparsity` asks for, or there is none to reach."""
    target = target_of(config)
    return target is None or sparsity(model) >= target - TOLERANCE


def target_of(config: SparseConfig) -> float | None:
    """The sparsity that a configuration asks for; None where it asks for none."""
    return config.target_sparsity if isinstance(config, Budget | Target) else None


def _margin(layer: SparseLayer, stride: int) -> Tensor:
    """The layer's margins, infinite for the weights that `max_layer_sparsity` keeps in any case."""
    sparsifier = layer.sparsifier
    margin = sparsifier.margin(layer.weight, stride)
    limit = sparsifier.config.sparsity_limit
    if limit == 1.0:
        return margin
    most = int(limit * margin.numel())
    if most == 0:
        return torch.full_like(margin, math.inf)
    return torch.where(margin > margin.kthvalue(most).values, math.inf, margin)

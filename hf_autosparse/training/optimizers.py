"""Which optimizers suit a sparse model: refused are those with which a setting or a method would have no effect."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable

import torch

from ..layers.sparse import SparseLayer
from ..methods import LearnedParameters, RandomMaskSparsifier, Sparsifier
from .grown import no_growth


def check_optimizer(optimizer: torch.optim.Optimizer, layers: Iterable[SparseLayer]) -> None:
    """Raise ValueError if the optimizer does not suit the methods of these layers; the message says what to do."""
    optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper
    for sparsifier in {type(layer.sparsifier): layer.sparsifier for layer in layers}.values():
        if steps_in_backward(optimizer) and (lost := _lost_in_backward(sparsifier)):
            raise ValueError(
                f"method {sparsifier.config.method!r} does not suit an optimizer that updates each parameter during"
                f" backward (layerwise GaLore and APOLLO, LOMO), here {type(optimizer).__name__}: {lost}. Use one that"
                " steps afterwards, such as optim='adamw_torch', 'galore_adamw' or 'apollo_adamw'"
            )
        if isinstance(sparsifier, RandomMaskSparsifier) and _has_quantised_state(optimizer):
            raise ValueError(no_growth(optimizer))


def steps_in_backward(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the weights change during the backward pass: transformers' stand-in for layerwise optimizers, or LOMO."""
    layerwise = getattr(sys.modules.get("transformers.trainer_pt_utils"), "LayerWiseDummyOptimizer", ())
    return isinstance(optimizer, layerwise) or hasattr(optimizer, "fused_backward")


def _lost_in_backward(sparsifier: Sparsifier) -> str | None:
    """What of the method would have no effect."""
    if isinstance(sparsifier.config, LearnedParameters):
        return "it gives thresholds the weights' learning rate and decay, not threshold_lr and threshold_weight_decay"
    if type(sparsifier).regularise is not Sparsifier.regularise:
        return "gradients are used up before the method's penalty is added"
    if isinstance(sparsifier, RandomMaskSparsifier):
        return "its state for newly grown weights cannot start over"
    return None


def _has_quantised_state(optimizer: torch.optim.Optimizer) -> bool:
    bits = getattr(getattr(optimizer, "args", None), "optim_bits", 32)  # bitsandbytes
    return bits == 8 or re.search(r"[48]bit$", type(optimizer).__name__) is not None

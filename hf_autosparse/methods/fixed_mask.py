"""Fixed mask: train on with the zeros that the weights already have."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from .base import register
from .config import FirstLast, SparseConfig
from .masked import MaskedSparsifier

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FixedMaskConfig(SparseConfig):
    """Fixed mask: a pruned model trains on with its zeros kept.

    Args:
        first_last: "none": the first and the last layer keep their zeros like any other.
    """

    method: ClassVar[str] = "fixed_mask"

    first_last: FirstLast = "none"


@register(FixedMaskConfig)
class FixedMask(MaskedSparsifier):
    """The mask is `w != 0` when `sparsify` is called: zeros stay zeros, all else trains.

    For fine-tuning any pruned checkpoint, pruned by any tool. Pruned weights get no gradient. The sparsity is given, so
    nothing is annealed or guarded.
    """

    reference = "no paper: continued training of a pruned model"
    config: FixedMaskConfig

    def first_mask(self, weight: Tensor, sparsity: float) -> Tensor:
        return weight != 0

    def start_from_zeros(self, weight: Tensor, sparsity: float) -> None:
        """Nothing: the mask says it all."""

    @classmethod
    @torch.no_grad()
    def check_model(cls, model: nn.Module, sparse: Collection[str]) -> None:
        """Warn of zeros that training will not keep, and of a model without any."""
        inside = {f"{name}.weight" if name else "weight" for name in sparse}
        lost = {}
        for name, parameter in model.named_parameters():
            if name not in inside and parameter.requires_grad and parameter.dim() >= 2:
                zeros = parameter.numel() - int(parameter.count_nonzero())
                module = model.get_submodule(name.rpartition(".")[0])
                if isinstance(module, nn.Embedding) and module.padding_idx is not None:  # stays zero by itself
                    zeros -= parameter.shape[1] - int(parameter[module.padding_idx].count_nonzero())
                if 0 < zeros < parameter.numel():  # a weight that is all zero is fresh, not pruned
                    lost[name] = zeros
        if lost:
            logger.warning(
                "fixed_mask keeps the zeros of Linear, Conv2d and Conv1D layers; those of these weights may be lost"
                " unless they are frozen (requires_grad_(False)): %s",
                ", ".join(f"{name} ({zeros} zeros)" for name, zeros in lost.items()),
            )
        if all(model.get_parameter(name).all() for name in inside):
            logger.warning("fixed_mask finds no zero in %d layers: is this the pruned checkpoint?", len(sparse))

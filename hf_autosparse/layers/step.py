"""What a sparse layer derives from its weight and shares between the forwards of one optimizer step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from .multiply import WeightForms
    from .sparse import SparseLayer


class OpenStep:
    """Holds derived values from `SparseLayer.begin_step` until the optimizer is about to change the weight.

    The weight does not change in between. An edit in place inside the step is noticed all the same, by the versions of
    the tensors; one through `tensor.data`, which has no version, is not.

    Args:
        keeps_weight: whether to keep the effective weight, too: worth its memory if there are several micro-batches.
    """

    def __init__(self, keeps_weight: bool):
        self.keeps_weight = keeps_weight
        self.effective: Tensor | None = None  # detached
        self.forms: WeightForms | None = None
        self._versions: list[tuple[int, int]] = []

    def refresh(self, layer: SparseLayer) -> None:
        """Forget the values if a tensor that they come from has changed."""
        sparsifier = layer.sparsifier
        tensors = (layer.weight, *sparsifier.parameters(), *sparsifier.buffers())
        versions = [(tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for tensor in tensors]
        if versions != self._versions:
            self._versions, self.effective, self.forms = versions, None, None

"""Sparse layers: thin subclasses of the dense ones that hold a sparsifier.

A layer is converted by swapping its `__class__` in place: names, hooks, tied references and pickling stay as they are,
and stock `from_pretrained` still knows every key (docs/design.md compares this with torch's parametrize).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .methods import Sparsifier


class SparseLayer:
    """Mixin: a layer whose forward uses `sparsifier(weight)`.

    `folded` holds the effective weight as a constant while the model is only evaluated (see `hf_autosparse.folded`):
    decoding calls a layer hundreds of times with a weight that does not change.
    """

    weight: nn.Parameter
    sparsifier: Sparsifier
    folded: Tensor | None = None
    output_dim = 0

    def sparse_weight(self) -> Tensor:
        """The effective weight, shaped like `weight`."""
        if self.folded is not None:
            return self.folded
        effective = self.sparsifier(self.weight)
        if self.sparsifier.wants_gradient and effective.requires_grad:
            effective.register_hook(self.sparsifier.collect_gradient)
        return effective


class SparseLinear(SparseLayer, nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.sparse_weight(), self.bias)


class SparseConv2d(SparseLayer, nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.sparse_weight(), self.bias)


_SPARSE_CLASSES: dict[type[nn.Module], type[SparseLayer]] = {nn.Linear: SparseLinear, nn.Conv2d: SparseConv2d}


def sparse_class(module: nn.Module) -> type[SparseLayer] | None:
    """The sparse counterpart of a module's exact type, or None.

    Subclasses don't count: they may bypass `forward` (`nn.MultiheadAttention.out_proj`) or hold no plain weight (LoRA,
    quantised layers).
    """
    cls = type(module)
    if cls.__name__ == "Conv1D" and cls.__module__ == "transformers.pytorch_utils":
        from .layers_conv1d import SparseConv1D  # imported only for models that use it: keeps this level torch-only

        return SparseConv1D
    return _SPARSE_CLASSES.get(cls)


def swap_in(module: nn.Module, sparsifier: Sparsifier) -> None:
    """Make a dense layer sparse, in place."""
    module.__class__ = sparse_class(module)
    module.sparsifier = sparsifier


def swap_out(layer: SparseLayer) -> None:
    """Undo `swap_in`; the weight is left as it is."""
    del layer.sparsifier
    layer.__dict__.pop("folded", None)
    layer.__class__ = type(layer).__mro__[2]  # (sparse class, SparseLayer, dense class, ...)

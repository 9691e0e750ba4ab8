"""Sparse layers: thin subclasses of the dense ones that hold a sparsifier.

A layer is converted by swapping its `__class__` in place: names, hooks, tied references and pickling stay as they are,
and stock `from_pretrained` still knows every key (docs/design.md compares this with torch's parametrize).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..methods import Sparsifier
from . import kinds
from . import product as sparse_product
from .stamp import stamp_of

_DERIVED = ("_sparse_forms", "_effective")


class SparseLayer:
    """Mixin: a layer whose forward uses `sparsifier(weight)`.

    `folded` holds the effective weight as a constant while the model is only evaluated (see `hf_autosparse.folded`):
    decoding calls a layer hundreds of times with a weight that does not change. `reuses` makes the micro-batches of an
    optimizer step share the effective weight, which then stays in memory; the callback sets it where there are several.
    """

    weight: nn.Parameter
    sparsifier: Sparsifier
    folded: Tensor | None = None
    reuses = False
    output_dim = 0

    def sparse_weight(self) -> Tensor:
        """The effective weight that is evaluated and saved, shaped like `weight`."""
        return self.sparsifier.deployed(self.weight) if self.folded is None else self.folded

    def current_weight(self) -> Tensor:
        """The effective weight that the next forward uses: in training it may differ from `sparse_weight`."""
        if self.folded is not None or not self.training:
            return self.sparse_weight()
        effective = self._effective_weight()
        if self.sparsifier.collects_gradient and effective.requires_grad:
            effective.register_hook(self.sparsifier.collect_gradient)
        return effective

    def _effective_weight(self) -> Tensor:
        if not self.reuses or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.sparsifier(self.weight)
        stamp, kept = stamp_of(self), self.__dict__.get("_effective")
        if kept is not None and kept[0] == stamp:
            return self.sparsifier.forward_cached(self.weight, kept[1])
        effective = self.sparsifier(self.weight)
        self.__dict__["_effective"] = stamp, effective.detach()
        return effective

    def forward(self, input: Tensor) -> Tensor:
        weight = self.current_weight()
        if not (self.training and self.folded is None and torch.is_grad_enabled()):
            return self._multiply(input, weight, self.bias)
        learned_from = self.sparsifier.backward_input(input)
        if learned_from is None:
            return self._multiply(input, weight, self.bias)
        # Adds exactly 0, and to the weight the gradient that it would have if `learned_from` had been the input.
        output = self._multiply(input, weight.detach(), self.bias)
        shadow = self._multiply(learned_from.detach(), weight, None)
        return output + (shadow - shadow.detach())

    def _multiply(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.training and self.folded is None and self.sparsifier.config.compute != "dense":
            output = self.sparse_product(input, weight, bias)
            if output is not None:
                return output
        return self.product(input, weight, bias)

    def product(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The dense layer's forward with this weight."""
        raise NotImplementedError

    def sparse_product(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        """The same in training with the weight's zeros skipped; None where the layer or this call has to be dense."""
        return None

    def forget_derived(self) -> None:
        """Forget what was derived from the weight; it is made again when needed."""
        for name in _DERIVED:
            self.__dict__.pop(name, None)

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key not in _DERIVED}


class SparseLinear(SparseLayer, nn.Linear):
    def product(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(input, weight, bias)

    def sparse_product(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        return sparse_product.linear(self, input, weight, bias)


class SparseConv2d(SparseLayer, nn.Conv2d):
    def product(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._conv_forward(input, weight, bias)


kinds.LINEAR.add_form("sparse", SparseLinear)
kinds.CONV2D.add_form("sparse", SparseConv2d)
kinds.CONV1D.add_form("sparse", "hf_autosparse.layers.sparse_conv1d:SparseConv1D")


def make_sparse(layer: nn.Module, sparsifier: Sparsifier) -> None:
    """Turn a plain layer into its sparse form, in place."""
    kinds.swap_in(layer, "sparse")
    layer.sparsifier = sparsifier


def make_plain(layer: SparseLayer) -> None:
    """Undo `make_sparse`; the weight is left as it is."""
    del layer.sparsifier
    layer.forget_derived()
    for name in ("folded", "reuses"):
        layer.__dict__.pop(name, None)
    kinds.swap_out(layer)

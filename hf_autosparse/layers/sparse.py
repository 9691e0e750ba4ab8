"""Sparse layers: thin subclasses of the dense ones that hold a sparsifier.

A layer is converted by swapping its `__class__` in place: names, hooks, tied references and pickling stay as they are,
and stock `from_pretrained` still knows every key (docs/design.md compares this with torch's parametrize).
"""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..methods import Progress, Sparsifier
from . import kinds, multiply
from .step import OpenStep


class SparseLayer(nn.Module):
    """Mixin: a layer whose forward uses `sparsifier(weight)`.

    An optimizer step of training goes through `begin_step`, the forwards and backwards, `before_optimizer_step`, the
    optimizer and `end_step`. `hf_autosparse.SparseTraining` makes these calls, and Trainer's callback makes it do so.
    Without them the layer computes the same, and its sparsifier stands still.

    Attributes:
        kind: the layer's type in the table of `kinds.py`.
        folded: the effective weight, a constant while the model is only evaluated (see `hf_autosparse.folded`):
            decoding calls a layer hundreds of times with a weight that does not change.
        open_step: what the forwards of the current optimizer step share; None outside a step, and where they share
            nothing.
        is_deployed: whether the layer's state dict holds the effective weight (see `saving.deployed`).
    """

    kind: ClassVar[kinds.LayerKind]
    weight: nn.Parameter
    bias: nn.Parameter | None
    sparsifier: Sparsifier
    folded: Tensor | None = None
    open_step: OpenStep | None = None
    is_deployed: bool = False

    # ---- The optimizer step ----

    def begin_step(self, progress: Progress, micro_batches: int = 1) -> None:
        """Open an optimizer step: the sparsifier anneals, and forwards may share what they derive from the weight.

        Args:
            progress: where training stands before this step.
            micro_batches: forwards to come in this step. If there are several, they share the effective weight, which
                stays in memory for so long.
        """
        self.sparsifier.begin_step(progress)
        keeps_weight = micro_batches > 1
        self.open_step = OpenStep(keeps_weight) if keeps_weight or self._may_multiply_sparsely() else None

    @torch.no_grad()
    def before_optimizer_step(self) -> None:
        """Let the sparsifier add its penalty to the gradients. Nothing derived from the weight is kept any longer."""
        self.open_step = None
        self.sparsifier.regularise(self.weight)

    @torch.no_grad()
    def end_step(self, progress: Progress) -> Tensor | None:
        """Let the sparsifier change mask and weight after the optimizer's step, which `progress` counts in.

        Returns:
            Bool tensor of the weight's shape, True where a weight was newly grown; None where none was.
        """
        self.open_step = None
        return self.sparsifier.end_step(self.weight, progress)

    # ---- The effective weight ----

    def sparse_weight(self) -> Tensor:
        """The effective weight that is evaluated and saved, shaped like `weight`."""
        return self.sparsifier.deployed(self.weight) if self.folded is None else self.folded

    def current_weight(self) -> Tensor:
        """The effective weight that the next forward uses: in training it may differ from `sparse_weight`."""
        if self.folded is not None or not self.training:
            return self.sparse_weight()
        effective = self._effective_weight()
        if self.sparsifier.collects_gradient and effective.requires_grad:
            hook = self.sparsifier.collect_gradient
            effective.register_hook(hook)
        return effective

    def _effective_weight(self) -> Tensor:
        step = None if torch.compiler.is_compiling() else self.open_step
        if step is not None:
            step.refresh(self)
            if step.keeps_weight and step.effective is not None and torch.is_grad_enabled():
                return self.sparsifier.forward_cached(self.weight, step.effective)
        effective: Tensor = self.sparsifier(self.weight)
        if step is not None and step.keeps_weight and torch.is_grad_enabled():
            step.effective = effective.detach()
        return effective

    # ---- The layer's output ----

    def forward(self, input: Tensor) -> Tensor:
        weight = self.current_weight()
        if not (self.training and self.folded is None and torch.is_grad_enabled()):
            return self._multiply(input, weight, self.bias)
        learned_from = self.sparsifier.backward_input(input)
        if learned_from is None:
            return self._multiply(input, weight, self.bias)
        output = self._multiply(input, weight.detach(), self.bias)
        # Zero in the forward pass; routes the weight gradient through `learned_from`.
        detour = self._multiply(learned_from.detach(), weight, None)
        return output + (detour - detour.detach())

    def _multiply(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.training and self.folded is None and self._may_multiply_sparsely():
            output = self.sparse_product(input, weight, bias)
            if output is not None:
                return output
        return self.product(input, weight, bias)

    def _may_multiply_sparsely(self) -> bool:
        return self.sparsifier.config.compute != "dense"

    def product(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The dense layer's forward with this weight."""
        raise NotImplementedError

    def sparse_product(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        """The same in training with the weight's zeros skipped; None where the layer or this call must be dense."""
        return None

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "open_step"}


class SparseLinear(SparseLayer, nn.Linear):
    kind = kinds.LINEAR
    weight: nn.Parameter
    bias: nn.Parameter | None  # type: ignore[assignment]  # torch infers Parameter, and forgets bias=False

    def product(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(input, weight, bias)

    def sparse_product(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        return multiply.linear(self, input, weight, bias)


class SparseConv2d(SparseLayer, nn.Conv2d):
    kind = kinds.CONV2D
    weight: nn.Parameter
    bias: nn.Parameter | None

    def product(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        output: Tensor = self._conv_forward(input, weight, bias)
        return output


kinds.LINEAR.add_form("sparse", SparseLinear)
kinds.CONV2D.add_form("sparse", SparseConv2d)
kinds.CONV1D.add_form("sparse", "hf_autosparse.layers.sparse_conv1d:SparseConv1D")


def own_forward(layer: nn.Module) -> bool:
    """Whether the instance has a forward of its own, which Python finds before that of its class.

    That of its class, bound to it, is none: accelerate leaves it behind where it removes a hook.
    """
    forward = vars(layer).get("forward")
    return forward is not None and getattr(forward, "__func__", None) is not type(layer).forward


REMEDY = (
    " a forward of its own, set by a hook (a device map or offloading of accelerate, tensor parallelism, a profiler):"
    " the layer would compute with it and train dense. Load the model without device_map, offloading and tp_plan, or"
    " call accelerate.hooks.remove_hook_from_module(model, recurse=True)"
)


def make_sparse(layer: nn.Module, sparsifier: Sparsifier) -> SparseLayer:
    """Turn a plain layer into its sparse form, in place, and return it."""
    if not own_forward(layer):
        vars(layer).pop("forward", None)  # bound to the plain class
    kinds.swap_in(layer, "sparse")
    sparse = cast(SparseLayer, layer)
    sparse.sparsifier = sparsifier
    return sparse


def make_plain(layer: SparseLayer) -> None:
    """Undo `make_sparse`; the weight is left as it is."""
    del layer.sparsifier
    for name in ("folded", "open_step"):
        layer.__dict__.pop(name, None)
    kinds.swap_out(layer)

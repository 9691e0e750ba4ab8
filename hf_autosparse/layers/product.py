"""The product of a sparse layer in training with the zeros of its weight skipped: forward and both gradients.

`Y = X W^T + b` and `dL/dX = dL/dY W` skip the zeros of the effective weight W. `dL/dW = dL/dY^T X` is computed where
the sparsifier's `gradient_mask` says that it is needed; elsewhere it is 0, and the sparsifier would multiply it by 0.
Results differ from those of the dense products by rounding, and are the same to the bit for any number of threads.

The sparse forms of a weight are made once for all forwards of an optimizer step. They are derived, and no state:
neither saved nor copied with the layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import kernels
from ..functional import sampling_stride
from .stamp import stamp_of

if TYPE_CHECKING:
    from .sparse import SparseLayer

SAMPLE = 8192  # weights of a layer that are looked at
FEWEST_ZEROS = 0.3  # with fewer, the dense product is faster for every number of tokens


class Forms:
    """The sparse forms of one effective weight.

    Args:
        weight: (outputs, inputs), float32, on the CPU, with zeros.
        library: the C kernels.
        sampled: whether its gradient is needed in some places only.
        pattern: bool, (outputs, inputs): these places; None for those where the weight is not 0.
    """

    def __init__(self, weight: Tensor, library: kernels.Library, sampled: bool, pattern: Tensor | None = None):
        self._library = library
        self.matrix = kernels.SparseMatrix(weight, library)
        self._transposed: kernels.SparseMatrix | None = None
        self._pattern = self.matrix if sampled else None
        if pattern is not None:
            self._pattern = kernels.SparseMatrix(pattern.float(), library)

    def input_gradient(self, grad: Tensor, weight: Tensor) -> Tensor:
        """`grad W`; `weight` is the one that the forms were made of."""
        if self._transposed is None:
            self._transposed = kernels.SparseMatrix(weight.detach().t(), self._library)
        product = self._transposed.product(grad)
        return grad @ weight if product is None else product

    def weight_gradient(self, grad: Tensor, input: Tensor, weight: Tensor, sampled: bool) -> Tensor:
        """`grad^T input`, laid out in memory as `weight` is; only where it is needed, if `sampled`."""
        if sampled and self._pattern is not None:
            result = _zeros_like(weight)
            if self._pattern.gradient(grad, input, result):
                return result
        return _dense_weight_gradient(grad, input, weight)


class SparseProduct(torch.autograd.Function):
    """`input weight^T + bias` by `forms`. `sampled`: the weight's gradient only where the forms have its pattern."""

    @staticmethod
    def forward(ctx, input: Tensor, weight: Tensor, bias: Tensor | None, forms: Forms, sampled: bool) -> Tensor:
        ctx.forms, ctx.sampled = forms, sampled
        ctx.save_for_backward(input, weight)
        output = forms.matrix.product(input.contiguous(), bias)
        return F.linear(input, weight, bias) if output is None else output

    @staticmethod
    def backward(ctx, grad: Tensor):
        input, weight = ctx.saved_tensors
        for_input, for_weight, for_bias = ctx.needs_input_grad[:3]
        # Grad mode is on in a backward pass that is to be differentiated again: autograd must see the operations.
        dense = torch.is_grad_enabled() or type(grad) is not Tensor
        grad_input = grad_weight = grad_bias = None
        if dense:
            grad_input = grad @ weight if for_input else None
            grad_weight = _dense_weight_gradient(grad, input, weight) if for_weight else None
        else:
            grad = grad.contiguous()
            if for_input:
                grad_input = ctx.forms.input_gradient(grad, weight)
            if for_weight:
                grad_weight = ctx.forms.weight_gradient(grad, input.contiguous(), weight, ctx.sampled)
        if for_bias:
            grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0)
        return grad_input, grad_weight, grad_bias, None, None


def linear(layer: SparseLayer, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """`F.linear` of a layer in training with its effective weight, by the sparse product.

    Args:
        layer: a Linear or Conv1D; its `sparsifier.config.compute` is "sparse" or "auto".
        input: (..., inputs).
        weight: effective, shaped like `layer.weight`; may be detached.
        bias: (outputs,) or None.

    Returns:
        (..., outputs), or None where the dense product is to be taken: other tensors than plain float32 ones on the
        CPU, under autocast, functorch, tracing or `torch.compile`, without the C kernels, for a weight with fewer than
        30 % zeros, and, with "auto", where the sparse product was not measured faster.
    """
    if _needs_plain_ops() or not _takes(input, weight, bias) or layer.weight.is_inference():
        return None
    matrix = weight if layer.output_dim == 0 else weight.t()
    if not input.dim() or input.shape[-1] != matrix.shape[1]:  # the dense product has the message
        return None
    library = kernels.library()
    if library is None:
        return None
    forms = _forms(layer, matrix, input.numel() // input.shape[-1], bias is not None, library)
    if forms is None:
        return None
    return SparseProduct.apply(input, matrix, bias, forms, not layer.sparsifier.collects_gradient)


@dataclass
class _Cache:
    """What a layer keeps for the other forwards of the same optimizer step.

    `zeros`: fraction of them, about. `sampled`: the weight's gradient is needed in some places only. `pattern`: these
    places if they are not just where the weight is not 0 (one that was grown at 0 needs its gradient, too), until
    `forms`.
    """

    stamp: tuple
    zeros: float
    sampled: bool = False
    pattern: Tensor | None = None
    forms: Forms | None = None


@torch.no_grad()
def _forms(layer: SparseLayer, matrix: Tensor, tokens: int, bias: bool, library: kernels.Library) -> Forms | None:
    cache: _Cache | None = layer.__dict__.get("_sparse_forms")
    stamp = stamp_of(layer)
    if cache is None or cache.stamp != stamp:
        cache = layer.__dict__["_sparse_forms"] = _look_at(layer, matrix, stamp)
    if cache.zeros < FEWEST_ZEROS:
        return None
    if layer.sparsifier.config.compute == "auto":
        from .crossover import is_faster  # a higher level: only "auto" measures

        if not is_faster(tuple(matrix.shape), bias, tokens, cache.zeros, cache.sampled):
            return None
    if cache.forms is None:
        cache.forms, cache.pattern = Forms(matrix, library, cache.sampled, cache.pattern), None
    return cache.forms


def _look_at(layer: SparseLayer, matrix: Tensor, stamp: tuple) -> _Cache:
    cache = _Cache(stamp, _fraction_of_zeros(matrix))
    if cache.zeros < FEWEST_ZEROS or not layer.weight.requires_grad:
        return cache
    if layer.sparsifier.learns_where_kept():
        cache.sampled = True
        return cache
    mask = layer.sparsifier.gradient_mask(layer.weight)
    needed = matrix.numel() if mask is None else int(mask.count_nonzero())
    if needed > (1 - FEWEST_ZEROS) * matrix.numel():
        return cache
    cache.sampled = True
    mask = mask if layer.output_dim == 0 else mask.t()
    # Counted and compared as bool tensors: torch is several times faster with them than with float32 and `equal`.
    kept = matrix != 0
    count = int(kept.count_nonzero())
    if not needed == count == int((kept & mask).count_nonzero()):
        cache.pattern = mask.clone()  # methods change theirs in place
    return cache


def _fraction_of_zeros(matrix: Tensor) -> float:
    """Of a sample: it only decides whether to skip them."""
    flat = (matrix if matrix.is_contiguous() else matrix.t()).reshape(-1)
    sample = flat[:: sampling_stride(flat.numel(), SAMPLE)]
    return 1 - int(sample.count_nonzero()) / sample.numel()


def _takes(*tensors: Tensor | None) -> bool:
    for tensor in tensors:
        if tensor is None:
            continue
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.dtype is not torch.float32 or not tensor.is_cpu:
            return False
        if tensor.layout is not torch.strided or tensor.numel() == 0:
            return False
    return tensors[-1] is None or tensors[-1].is_contiguous()


def _needs_plain_ops() -> bool:
    """Whether something that must see or change every operation is at work."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or torch.is_autocast_enabled("cpu")
    )


def _zeros_like(weight: Tensor) -> Tensor:
    return torch.zeros(weight.shape) if weight.is_contiguous() else torch.zeros(weight.shape[::-1]).t()


def _dense_weight_gradient(grad: Tensor, input: Tensor, weight: Tensor) -> Tensor:
    grad, input = grad.reshape(-1, grad.shape[-1]), input.reshape(-1, input.shape[-1])
    return grad.t() @ input if weight.is_contiguous() else (input.t() @ grad).t()

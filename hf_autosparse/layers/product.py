"""The product of a sparse layer in training with the zeros of its weight skipped: forward and both gradients.

`Y = X W^T + b` and `dL/dX = dL/dY W` skip the zeros of the effective weight W. `dL/dW = dL/dY^T X` is computed where
the sparsifier's `gradient_mask` says that it is needed; elsewhere it is 0, and the sparsifier would multiply it by 0.
Results differ from those of the dense products by rounding, and are the same to the bit for any number of threads.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import kernels


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
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, forms: Forms, sampled: bool) -> Tensor:
        ctx.forms, ctx.sampled = forms, sampled
        ctx.save_for_backward(input, weight)
        output = forms.matrix.product(input.contiguous(), bias)
        return F.linear(input, weight, bias) if output is None else output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
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


def sparse_product(input: Tensor, weight: Tensor, bias: Tensor | None, forms: Forms, sampled: bool) -> Tensor:
    """`F.linear(input, weight, bias)`, differentiable, by the sparse forms of `weight`.

    Args:
        input: (..., inputs), float32, on the CPU.
        weight: (outputs, inputs), the one that the forms were made of.
        bias: (outputs,) or None.
        forms: of the weight.
        sampled: whether the weight's gradient is computed only where the forms have its pattern.
    """
    output: Tensor = SparseProduct.apply(  # type: ignore[no-untyped-call]  # torch declares no types for it
        input, weight, bias, forms, sampled
    )
    return output


def _zeros_like(weight: Tensor) -> Tensor:
    return torch.zeros(weight.shape) if weight.is_contiguous() else torch.zeros(weight.shape[::-1]).t()


def _dense_weight_gradient(grad: Tensor, input: Tensor, weight: Tensor) -> Tensor:
    grad, input = grad.reshape(-1, grad.shape[-1]), input.reshape(-1, input.shape[-1])
    return grad.t() @ input if weight.is_contiguous() else (input.t() @ grad).t()

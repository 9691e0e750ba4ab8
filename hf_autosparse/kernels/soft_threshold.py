"""The annealed soft threshold by the fastest means for its tensors: C, Triton or the reference in `functional`."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from .. import functional
from .cpu import threshold as c_kernel
from .cpu.binding import Library
from .cpu.library import library
from .cpu.threshold import Shape
from .triton import availability as triton


def annealed_soft_threshold(
    weight: Tensor,
    threshold: Tensor,
    alpha: float,
    backward_sparsity: float | None = None,
    dtype: torch.dtype | None = None,
    cached: Tensor | None = None,
) -> Tensor:
    """`functional.annealed_soft_threshold`, by a kernel where one takes these tensors.

    The result and the weight's gradient are the reference's to the bit. The threshold's gradient is summed in another
    order, which is the same in every run.

    Args:
        weight, threshold, alpha, backward_sparsity: as in the reference.
        dtype: of the result, which is rounded once. None: `weight`'s; but where autocast is on, gradients are recorded
            and the GPU's kernel computes, that of autocast, to which the product would convert it in a pass of its own.
        cached: the result of an earlier call with the same arguments, which a kernel need not compute again.
    """
    restricted = backward_sparsity is not None and alpha > 0
    shape = None if restricted else _kernel_layout(weight, threshold)
    if shape is None:
        effective = functional.annealed_soft_threshold(weight, threshold, alpha, backward_sparsity)
    else:
        rounded_to = (dtype or _product_dtype(weight)) if triton.takes(weight) else weight.dtype
        effective = functional.apply_function(_OnePass, weight, threshold, alpha, shape, rounded_to, cached)
    return effective if dtype is None else effective.to(dtype)  # the GPU's kernel has rounded: nothing is left to do


def _product_dtype(weight: Tensor) -> torch.dtype:
    """Dtype of the matmul that consumes this weight. Without gradients the weight may be for saving: its own dtype."""
    kind = weight.device.type
    if torch.is_grad_enabled() and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return weight.dtype


def _kernel_layout(weight: Tensor, threshold: Tensor) -> Shape | None:
    """How the kernels see these tensors, or None where plain torch computes: other tensors, tracing, no kernels."""
    if (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
    ):
        return None
    if any(type(tensor) not in (Tensor, torch.nn.Parameter) for tensor in (weight, threshold)):
        return None
    if triton.takes(weight):
        kernel = triton.threshold()
        return None if kernel is None else cast("Shape | None", kernel.layout(weight, threshold))
    shape = c_kernel.layout(weight, threshold)
    return shape if shape is not None and library() is not None else None


def _c_library() -> Library:
    loaded = library()
    assert loaded is not None  # `_kernel_layout` has asked
    return loaded


def _triton_kernel() -> Any:
    kernel = triton.threshold()
    assert kernel is not None  # `_kernel_layout` has asked
    return kernel


class _OnePass(torch.autograd.Function):
    """The kernels' computation: one pass over the weight in each direction."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        threshold: Tensor,
        alpha: float,
        shape: Shape,
        dtype: torch.dtype,
        cached: Tensor | None,
    ) -> Tensor:
        ctx.alpha, ctx.shape = alpha, shape
        ctx.save_for_backward(weight, threshold)
        if cached is not None and cached.dtype == dtype:
            return cached.detach()
        if triton.takes(weight):
            effective: Tensor = _triton_kernel().forward(weight, threshold, shape, dtype)
            return effective
        return c_kernel.forward(_c_library(), weight, threshold, shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, threshold = ctx.saved_tensors
        # Grad mode is on in a backward pass that is to be differentiated again: autograd must see the operations.
        if torch.is_grad_enabled() or type(grad) is not Tensor:
            gradients = functional.annealed_gradients(weight, threshold, grad.to(weight.dtype), ctx.alpha)
        elif triton.takes(weight):
            gradients = _triton_kernel().backward(weight, threshold, grad, ctx.alpha, ctx.shape)
        else:
            gradients = c_kernel.backward(_c_library(), weight, threshold, grad, ctx.alpha, ctx.shape)
        return *gradients, None, None, None, None

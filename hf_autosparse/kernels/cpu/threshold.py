"""The annealed soft threshold by csrc/threshold.c: what `functional` computes, one pass each way."""

from __future__ import annotations

import torch
from torch import Tensor

from .binding import Library, threads
from .library import register_check

Shape = tuple[int, int, int]


def layout(weight: Tensor, threshold: Tensor) -> Shape | None:
    """(rows, columns, thresholds are by column) under which the kernel sees the weight, or None where it cannot.

    It takes plain contiguous float32 tensors on the CPU with thresholds that `view` knows.
    """
    for tensor in (weight, threshold):
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu" or not tensor.is_contiguous():
            return None
    return view(weight, threshold)


def view(weight: Tensor, threshold: Tensor) -> Shape | None:
    """`layout` of contiguous tensors: one threshold, one for each entry of the first dimension, or of the last."""
    size, count = weight.numel(), threshold.numel()
    if size == 0:
        return None
    if count == 1:
        return 1, size, 0
    if threshold.dim() == weight.dim():
        if count == threshold.shape[0] == weight.shape[0]:
            return count, size // count, 0
        if count == threshold.shape[-1] == weight.shape[-1]:
            return size // count, count, 1
    return None


def forward(library: Library, weight: Tensor, threshold: Tensor, shape: Shape) -> Tensor:
    """`soft_threshold(weight, threshold)`, to the bit. `shape` is from `layout`."""
    result = torch.empty_like(weight)
    library.forward(weight.data_ptr(), threshold.data_ptr(), result.data_ptr(), *shape, threads())
    return result


def backward(
    library: Library, weight: Tensor, threshold: Tensor, grad: Tensor, alpha: float, shape: Shape
) -> tuple[Tensor, Tensor]:
    """The gradients of weight (to the bit) and threshold (the same for any number of threads). `grad` is float32."""
    grad = grad.contiguous()
    grad_weight, grad_threshold = torch.empty_like(weight), torch.empty_like(threshold)
    status = library.backward(
        *(tensor.data_ptr() for tensor in (weight, threshold, grad)),
        alpha,
        grad_weight.data_ptr(),
        grad_threshold.data_ptr(),
        *shape,
        threads(),
    )
    if status < 0:
        raise MemoryError("no memory for the partial sums of the threshold's gradient")
    return grad_weight, grad_threshold


@register_check
def _agrees_with_torch(library: Library) -> bool:
    weight = torch.linspace(-2, 2, 301, dtype=torch.float32, device="cpu")
    cut = torch.ones(1, dtype=torch.float32, device="cpu")
    grad = torch.arange(301, dtype=torch.float32, device="cpu")
    shape = (1, 301, 0)
    active = weight.abs() > 1
    grad_weight, grad_threshold = backward(library, weight, cut, grad, 0.5, shape)
    return (
        torch.equal(forward(library, weight, cut, shape), weight - weight.clamp(-1, 1))
        and torch.equal(grad_weight, torch.where(active, grad, grad * 0.5))
        and torch.allclose(grad_threshold, -(grad_weight * weight.sign()).sum(), rtol=1e-4)
    )

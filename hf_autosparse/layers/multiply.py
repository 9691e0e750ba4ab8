"""Which calls of a sparse layer in training skip the zeros of its weight, and the sparse forms that they share.

The forms of a weight are made once for all forwards of an open optimizer step (`SparseLayer.begin_step`), else for
every forward. They are derived: neither saved nor copied with the layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .. import kernels
from ..functional import sampling_stride
from . import crossover
from .product import Forms, sparse_product

if TYPE_CHECKING:
    from .sparse import SparseLayer

SAMPLE = 8192  # weights of a layer that are looked at
FEWEST_ZEROS = 0.3  # with fewer, the dense product is faster for every number of tokens


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
    matrix = layer.kind.matrix(weight)
    if not input.dim() or input.shape[-1] != matrix.shape[1]:  # the dense product has the message
        return None
    library = kernels.library()
    if library is None:
        return None
    forms = _forms(layer, matrix, input.numel() // input.shape[-1], bias is not None, library)
    if forms is None:
        return None
    return sparse_product(input, matrix, bias, forms, not layer.sparsifier.collects_gradient)


@dataclass
class WeightForms:
    """What a product needs to know of one effective weight; `forms` are made when they are needed.

    `zeros`: their fraction, about. `sampled`: the weight's gradient is needed in some places only. `pattern`: these
    places if they differ from the weight's non-zeros (one that was grown at 0 needs its gradient, too), until `forms`.
    """

    zeros: float
    sampled: bool = False
    pattern: Tensor | None = None
    forms: Forms | None = None


@torch.no_grad()
def _forms(layer: SparseLayer, matrix: Tensor, tokens: int, bias: bool, library: kernels.Library) -> Forms | None:
    step = layer.open_step
    known = None if step is None else step.forms
    if known is None:
        known = _look_at(layer, matrix)
        if step is not None:
            step.forms = known
    if known.zeros < FEWEST_ZEROS:
        return None
    if layer.sparsifier.config.compute == "auto":
        shape = (matrix.shape[0], matrix.shape[1])
        if not crossover.is_faster(shape, bias, tokens, known.zeros, known.sampled):
            return None
    if known.forms is None:
        known.forms, known.pattern = Forms(matrix, library, known.sampled, known.pattern), None
    return known.forms


def _look_at(layer: SparseLayer, matrix: Tensor) -> WeightForms:
    found = WeightForms(_fraction_of_zeros(matrix))
    if found.zeros < FEWEST_ZEROS or not layer.weight.requires_grad:
        return found
    if layer.sparsifier.learns_where_kept():
        found.sampled = True
        return found
    mask = layer.sparsifier.gradient_mask(layer.weight)
    if mask is None:
        return found
    needed = int(mask.count_nonzero())
    if needed > (1 - FEWEST_ZEROS) * matrix.numel():
        return found
    found.sampled = True
    mask = layer.kind.matrix(mask)
    # Counted and compared as bool tensors: torch is several times faster with them than with float32 and `equal`.
    kept = matrix != 0
    count = int(kept.count_nonzero())
    if not needed == count == int((kept & mask).count_nonzero()):
        found.pattern = mask.clone()  # methods change theirs in place
    return found


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

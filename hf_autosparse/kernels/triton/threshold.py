"""The annealed soft threshold in Triton: what `functional` computes, one pass each way, on a GPU.

The interface is that of cpu/threshold.py. Each program takes one tile of the weight. In the backward pass it writes the
sum of its share of each threshold's gradient into a buffer, which torch then sums in its own fixed order: no atomics,
so the same bits in every run.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# A Triton kernel is not Python: its parameters have the types that its caller's tensors give them.
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..cpu.threshold import Shape, view

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_TILE = 4096  # weights a program takes


def layout(weight: Tensor, threshold: Tensor) -> Shape | None:
    """(rows, columns, thresholds are by column) under which the kernel sees the weight, or None where it cannot.

    It takes contiguous tensors of 16 or 32 bits with thresholds as in `threshold.layout`.
    """
    for tensor in (weight, threshold):
        if tensor.dtype not in _DTYPES or not tensor.is_contiguous():
            return None
    return view(weight, threshold) if weight.device == threshold.device else None


def forward(weight: Tensor, threshold: Tensor, shape: Shape, dtype: torch.dtype) -> Tensor:
    """`soft_threshold(weight, threshold.to(weight.dtype)).to(dtype)`, to the bit."""
    result = torch.empty_like(weight, dtype=dtype)
    tiling = _Tiling(shape)
    with torch.cuda.device_of(weight):
        _forward[(tiling.programs,)](weight, threshold, result, *tiling.arguments)
    return result


def backward(weight: Tensor, threshold: Tensor, grad: Tensor, alpha: float, shape: Shape) -> tuple[Tensor, Tensor]:
    """The gradients of weight (its dtype, to the bit) and threshold (summed in float64, the same in every run).

    `grad` is that of the effective weight, in any dtype of the above.
    """
    grad = grad.contiguous()
    grad_weight, tiling = torch.empty_like(weight), _Tiling(shape)
    partial = torch.empty(tiling.partial_shape, dtype=torch.float64, device=weight.device)
    with torch.cuda.device_of(weight):
        _backward[(tiling.programs,)](weight, threshold, grad, float(alpha), grad_weight, partial, *tiling.arguments)
    return grad_weight, partial.sum(0).neg_().to(threshold.dtype).view_as(threshold)


class _Tiling:
    """How a layout is cut into tiles of two-power sides, and where their sums go."""

    def __init__(self, shape: Shape):
        rows, columns, by_column = shape
        tile_columns = min(triton.next_power_of_2(columns), 128 if by_column else _TILE)
        tile_rows = min(triton.next_power_of_2(rows), _TILE // tile_columns)
        down, across = -(-rows // tile_rows), -(-columns // tile_columns)
        self.programs = down * across
        self.partial_shape = (down, columns) if by_column else (across, rows)
        self.arguments = (rows, columns, across, by_column, tile_rows, tile_columns)


@triton.jit
def _tile(threshold, rows, columns, across, BY_COLUMN: tl.constexpr, R: tl.constexpr, C: tl.constexpr):
    """Where this program's tile lies, and its thresholds: (row, column, offset, inside, threshold)."""
    program = tl.program_id(0).to(tl.int64)
    row = program // across * R + tl.arange(0, R)[:, None]
    column = program % across * C + tl.arange(0, C)[None, :]
    inside = (row < rows) & (column < columns)
    if BY_COLUMN:
        cut = tl.load(threshold + column, mask=column < columns, other=0)
    else:
        cut = tl.load(threshold + row, mask=row < rows, other=0)
    return row, column, row * columns + column, inside, cut


@triton.jit
def _forward(
    weight,
    threshold,
    result,
    rows,
    columns,
    across,
    BY_COLUMN: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
):
    row, column, offset, inside, cut = _tile(threshold, rows, columns, across, BY_COLUMN, R, C)
    stored = tl.load(weight + offset, mask=inside, other=0)
    w, cut = stored.to(tl.float32), cut.to(stored.dtype).to(tl.float32)
    clamped = tl.where(w < -cut, -cut, w)
    clamped = tl.where(clamped > cut, cut, clamped)
    clamped = tl.where(cut == cut, clamped, cut)  # NaN thresholds give NaN weights
    tl.store(result + offset, (w - clamped).to(stored.dtype).to(result.dtype.element_ty), mask=inside)


@triton.jit
def _backward(
    weight,
    threshold,
    grad,
    alpha,
    grad_weight,
    partial,
    rows,
    columns,
    across,
    BY_COLUMN: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
):
    row, column, offset, inside, cut = _tile(threshold, rows, columns, across, BY_COLUMN, R, C)
    stored = tl.load(weight + offset, mask=inside, other=0)
    w, cut = stored.to(tl.float32), cut.to(stored.dtype).to(tl.float32)
    pulled = tl.load(grad + offset, mask=inside, other=0).to(stored.dtype).to(tl.float32)
    pulled = tl.where(tl.abs(w) > cut, pulled, pulled * alpha).to(stored.dtype)
    tl.store(grad_weight + offset, pulled, mask=inside)
    pulled = pulled.to(tl.float64)
    pulled = tl.where(w > 0, pulled, tl.where(w < 0, -pulled, pulled * 0.0))  # times the sign; NaN and infinity stay
    if BY_COLUMN:
        down = tl.program_id(0).to(tl.int64) // across
        tl.store(partial + down * columns + column, tl.sum(pulled, 0)[None, :], mask=column < columns)
    else:
        chunk = tl.program_id(0).to(tl.int64) % across
        tl.store(partial + chunk * rows + row, tl.sum(pulled, 1)[:, None], mask=row < rows)

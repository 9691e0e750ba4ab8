"""The product of few tokens with a `BitmaskMatrix`, in Triton.

A program unpacks tile after tile of 16 rows into registers: where a non-zero lies in `value` is the number of bits set
before its own. In 16 bits, several tokens go through the matrix units at once; in float32 each is a product of its own,
whose programs find the weight in the GPU's cache. Where there are fewer rows than the GPU needs to be busy, the columns
are split between programs, whose sums torch adds up in its own fixed order.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# A Triton kernel is not Python: its parameters have the types that its caller's tensors give them.
from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from .bitmask_tiles import COLUMNS, MOST_TOKENS, ROWS

_PROGRAMS = 4  # wanted on each multiprocessor: loads of some are under way while others compute


def product(
    bits: Tensor,
    offset: Tensor,
    value: Tensor,
    rows: int,
    x: Tensor,
    bias: Tensor | None,
    splits: int | None = None,
) -> Tensor:
    """`x W^T + bias` in x's dtype: (tokens, cols), at most 16 tokens -> (tokens, rows).

    Args:
        bits, offset, value: of the `BitmaskMatrix`; `rows`: its number of rows.
        splits: into how many parts the columns are split; None to fill the GPU.
    """
    (tokens, cols), (down, across) = x.shape, offset.shape
    if splits is None:
        splits = max(1, _PROGRAMS * _multiprocessors(x.device) // down)
    each = -(-across // min(splits, across))  # column blocks of a program
    splits = -(-across // each)
    final = splits == 1
    y = torch.empty(splits, tokens, rows, dtype=x.dtype if final else torch.float32, device=x.device)
    arrays = (x, bits, offset, value, bias if final else None, y)
    sizes = (tokens, rows, cols, across, each)
    together = tokens > 1 and x.dtype != torch.float32
    grid = (down, splits, 1 if together else tokens)
    with torch.cuda.device_of(x):
        _product[grid](*arrays, *sizes, MOST_TOKENS if together else 1, ROWS, COLUMNS // 32)
    if final:
        return y[0]
    total = y.sum(0)
    return (total if bias is None else total.add_(bias)).to(x.dtype)


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


@triton.jit
def _count(word):
    """The number of bits set in a uint32, in the form that LLVM knows as one instruction."""
    word -= (word >> 1) & 0x55555555
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    return ((((word + (word >> 4)) & 0x0F0F0F0F) * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def _product(
    x,
    bits,
    offset,
    value,
    bias,
    y,
    tokens,
    rows,
    cols,
    across,
    each,
    TOKENS: tl.constexpr,
    R: tl.constexpr,
    WORDS: tl.constexpr,
):
    down, split = tl.program_id(0), tl.program_id(1)
    token = tl.program_id(2) + tl.arange(0, TOKENS)
    row, word, lane = tl.arange(0, R), tl.arange(0, WORDS), tl.arange(0, 32).to(tl.uint32)
    own = (lane * 0 + 1) << lane  # each lane's bit
    if TOKENS == 1:
        total = tl.zeros([R, WORDS, 32], tl.float32)
    else:
        total = tl.zeros([TOKENS, R], tl.float32)
    for block in range(split * each, min(split * each + each, across)):
        tile = down.to(tl.int64) * across + block
        packed = tl.load(bits + tile * (R * WORDS) + row[:, None] * WORDS + word[None, :]).to(tl.uint32, bitcast=True)
        in_word = _count(packed)
        in_row = tl.sum(in_word, 1)
        first = (tl.cumsum(in_row, 0) - in_row)[:, None] + tl.cumsum(in_word, 1) - in_word
        packed = packed[:, :, None]
        place = first[:, :, None] + _count(packed & (own - 1)[None, None, :])
        kept = (packed & own[None, None, :]) != 0
        w = tl.load(value + tl.load(offset + tile) + place, mask=kept, other=0)
        if TOKENS == 1:
            column = block * (WORDS * 32) + word[:, None] * 32 + tl.arange(0, 32)[None, :]
            a = tl.load(x + tl.program_id(2) * cols + column, mask=column < cols, other=0)
            total += w.to(tl.float32) * a[None, :, :].to(tl.float32)
        else:
            column = block * (WORDS * 32) + tl.arange(0, WORDS * 32)
            inside = (token[:, None] < tokens) & (column[None, :] < cols)
            a = tl.load(x + token[:, None] * cols + column[None, :], mask=inside, other=0)
            total = tl.dot(a, tl.trans(tl.reshape(w, [R, WORDS * 32])), total, input_precision="ieee")
    row = down * R + row
    if TOKENS == 1:
        result = tl.sum(tl.sum(total, 2), 1)[None, :]
    else:
        result = total
    if bias is not None:
        result += tl.load(bias + row, mask=row < rows, other=0).to(tl.float32)[None, :]
    place = (split * tokens + token[:, None]) * rows + row[None, :]
    tl.store(y + place, result.to(y.dtype.element_ty), mask=(token[:, None] < tokens) & (row[None, :] < rows))

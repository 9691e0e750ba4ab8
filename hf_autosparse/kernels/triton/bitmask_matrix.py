"""A weight as one bit each and its packed non-zeros: for products whose time goes into reading the weight."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends import Backend, register_backend
from .availability import is_available, status
from .bitmask_tiles import COLUMNS, MOST_TOKENS, ROWS

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class BitmaskMatrix:
    """`Y = X W^T (+ bias)` for up to 16 tokens, reading 1 bit a weight and its dtype a non-zero.

    At 80 % sparsity that is 0.26 of a bfloat16 weight's bytes. The weight is cut into tiles of 16 x 256, padded with
    zeros at its edges. Building works on any device, the product needs Triton.

    Attributes:
        bits: int32, (row blocks, column blocks, 16, 8): bit j of word i is set where column `32 i + j` is not zero.
        offset: int64, (row blocks, column blocks): where in `value` the non-zeros of a tile begin, row after row.
        value: the non-zeros, in the weight's dtype.

    Args:
        weight: (rows, cols), float32, bfloat16 or float16, any strides. It is copied.

    Raises:
        ValueError: another dtype, or another number of dimensions.
    """

    def __init__(self, weight: Tensor):
        if weight.dim() != 2 or weight.dtype not in DTYPES:
            raise ValueError(
                f"weight has shape {tuple(weight.shape)} and dtype {weight.dtype}: it must have two dimensions, and be"
                f" one of {', '.join(map(str, DTYPES))}; view it as (outputs, inputs) and convert it first"
            )
        self.rows, self.cols = weight.shape
        down, across = -(-self.rows // ROWS), -(-self.cols // COLUMNS)
        padded = torch.nn.functional.pad(weight, (0, across * COLUMNS - self.cols, 0, down * ROWS - self.rows))
        tiles = padded.view(down, ROWS, across, COLUMNS).transpose(1, 2)
        kept = tiles != 0
        self.value = tiles[kept]
        count = kept.sum((2, 3))
        self.offset = (count.flatten().cumsum(0) - count.flatten()).view_as(count)
        places = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=weight.device)
        self.bits = (kept.unflatten(-1, (-1, 8)) * places).sum(-1, dtype=torch.uint8).view(torch.int32)

    @property
    def bytes(self) -> int:
        """Memory that the format takes, and what a product reads of it."""
        return sum(part.nbytes for part in (self.bits, self.offset, self.value))

    def to_dense(self) -> Tensor:
        """The weight, (rows, cols)."""
        places = torch.arange(8, dtype=torch.uint8, device=self.bits.device)
        kept = (self.bits.view(torch.uint8).unsqueeze(-1) >> places & 1).bool().flatten(-2)
        tiles = torch.zeros(kept.shape, dtype=self.value.dtype, device=self.value.device)
        tiles[kept] = self.value
        down, across = self.offset.shape
        return tiles.transpose(1, 2).reshape(down * ROWS, across * COLUMNS)[: self.rows, : self.cols]

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor | None:
        """`x W^T + bias`, summed in float32. Where an activation is infinite or NaN, so is what the dense product has.

        Args:
            x: (..., cols), the weight's dtype and device, contiguous, not empty.
            bias: (rows,), the same dtype and device, contiguous.

        Returns:
            (..., rows), or None for more than 16 tokens: take the dense product then.
        """
        if x.numel() > MOST_TOKENS * self.cols:
            return None
        from . import matvec  # imports Triton

        product = matvec.product(self.bits, self.offset, self.value, self.rows, x.view(-1, self.cols), bias)
        return product.view(*x.shape[:-1], self.rows)


register_backend(
    Backend(
        name="bitmask",
        device="cuda",
        dtypes=DTYPES,
        build=lambda weight: BitmaskMatrix(weight) if is_available() else None,
        is_available=is_available,
        requirement="the Triton kernels",
        status=status,
        version=status,
        most_tokens=MOST_TOKENS,
    )
)

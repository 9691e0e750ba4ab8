"""A 2:4 weight in the form that the matrix units of an NVIDIA GPU multiply (Ampere and later), by torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...functional import n_of_m_mask
from ..backends import Backend, register_backend

DTYPES = (torch.bfloat16, torch.float16)
_ROWS, _COLUMNS = 32, 64  # multiples that CUTLASS, the stricter of torch's two libraries, takes


class SemiStructuredMatrix:
    """`Y = X W^T (+ bias)` with half of W skipped. Zeros multiply nothing, not even an infinite activation or NaN.

    Args:
        weight: (rows, cols), bfloat16 or float16, on a GPU, any strides, which `refusal` accepts. It is copied.
    """

    def __init__(self, weight: Tensor):
        self.rows, self.cols = weight.shape
        self._weight = torch.sparse.to_sparse_semi_structured(weight.contiguous())

    @property
    def bytes(self) -> int:
        """Memory that the form takes."""
        return sum(part.nbytes for part in (self._weight.packed, self._weight.meta) if part is not None)

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """`x W^T + bias`: x (..., cols) -> (..., rows), all of one dtype and device."""
        return F.linear(x, self._weight, bias)


def refusal(weight: Tensor) -> str | None:
    """Why a weight (rows, cols) cannot take this form, or None."""
    rows, cols = weight.shape
    if rows % _ROWS or cols % _COLUMNS:
        return f"{rows} x {cols} is not a multiple of {_ROWS} x {_COLUMNS}"
    if int((weight.unflatten(1, (-1, 4)) != 0).sum(-1).max()) > 2:
        return "not 2:4, more than two of four consecutive inputs have a weight"
    return None


def _is_available() -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)


register_backend(
    Backend(
        name="semi_structured",
        device="cuda",
        dtypes=DTYPES,
        build=SemiStructuredMatrix,
        is_available=_is_available,
        requirement="a GPU of compute capability 8.0",
        status=lambda: "torch's 2:4 product" if _is_available() else "the dense product",
        version=lambda: f"torch {torch.__version__}",
        refusal=refusal,
        restrict=lambda weight: weight * n_of_m_mask(weight.abs(), 2, 4),
    )
)

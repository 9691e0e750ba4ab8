"""The sparse forms that a layer's weight can take for inference, by the name that `to_inference` knows them by."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .cpu.sparse_matrix import SparseMatrix
from .cuda import semi_structured
from .cuda.semi_structured import SemiStructuredMatrix
from .triton import availability as gpu
from .triton import bitmask_matrix
from .triton.bitmask_matrix import BitmaskMatrix


class Matrix(Protocol):
    """A weight (rows, cols) in a sparse form. `bytes`: memory that it takes."""

    rows: int
    cols: int
    bytes: int

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor | None:
        """`x W^T + bias`, or None where the dense product is to be taken."""


@dataclass(frozen=True)
class Backend:
    """One form.

    Attributes:
        device: type of the device that it is for.
        dtypes: of weight, bias and activations, which must be the same.
        build: weight (rows, cols) -> its form, or None where the kernels are missing.
        is_available: whether the kernels can be used; `needs` and `status` say what they are and which are taken instead.
        refusal: why a weight (rows, cols) cannot take the form, or None.
        most_tokens: beyond, `product` is None.
        convolves: whether it has a `convolution`.
        exact: whether it keeps every value of a weight. Where not, it is taken only if it is asked for by name.
    """

    name: str
    device: str
    dtypes: tuple[torch.dtype, ...]
    build: Callable[[Tensor], Matrix | None]
    is_available: Callable[[], bool]
    needs: str
    status: Callable[[], str]
    refusal: Callable[[Tensor], str | None] = lambda weight: None
    most_tokens: float = math.inf
    convolves: bool = False
    exact: Callable[[Tensor], bool] = lambda weight: True

    def applies(self, tensor: Tensor) -> bool:
        """Whether weight, bias or activations are of the right device and dtype."""
        return tensor.dtype in self.dtypes and tensor.device.type == self.device


def _library():
    from . import library

    return library()


def _c_status() -> str:
    from . import status

    return status()


def _sparse_matrix(weight: Tensor, values: torch.dtype = torch.float32) -> SparseMatrix | None:
    library = _library()
    return None if library is None else SparseMatrix(weight, library, values)


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend(
            "sparse",
            "cpu",
            (torch.float32,),
            _sparse_matrix,
            is_available=lambda: _library() is not None,
            needs="the C kernels",
            status=_c_status,
            convolves=True,
        ),
        Backend(
            "sparse_bfloat16",
            "cpu",
            (torch.float32,),
            lambda weight: _sparse_matrix(weight, torch.bfloat16),
            is_available=lambda: _library() is not None,
            needs="the C kernels",
            status=_c_status,
            convolves=True,
            exact=lambda weight: torch.equal(weight, weight.bfloat16().float()),
        ),
        Backend(
            "bitmask",
            "cuda",
            bitmask_matrix.DTYPES,
            lambda weight: BitmaskMatrix(weight) if gpu.is_available() else None,
            is_available=gpu.is_available,
            needs="the Triton kernels",
            status=gpu.status,
            most_tokens=bitmask_matrix.MOST_TOKENS,
        ),
        Backend(
            "semi_structured",
            "cuda",
            semi_structured.DTYPES,
            SemiStructuredMatrix,
            is_available=lambda: torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0),
            needs="a GPU of compute capability 8.0",
            status=lambda: "the dense product",
            refusal=semi_structured.refusal,
        ),
    )
}

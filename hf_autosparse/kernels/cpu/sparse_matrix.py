"""A weight with zeros in the format of csrc/sparse_matrix.h, and its product with activations."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ..backends import Backend, register_backend
from .binding import Library, threads
from .library import library as load_library
from .library import register_check, status

_BLOCK, _SLICE = 256, 4  # as in csrc/sparse_matrix.h
_ARRAYS = ("first_row", "first_step", "length", "order", "value", "half", "column")


class _Struct(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("rows", "cols", "chunks")] + [
        (name, ctypes.c_void_p) for name in _ARRAYS
    ]


class _Window(ctypes.Structure):
    """csrc/pixel_tile.h."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            *("height", "width", "kernel_height", "kernel_width", "stride_height", "stride_width"),
            *("dilation_height", "dilation_width", "out_height", "out_width", "grid_width"),
        )
    ]


def convolved(size: int, kernel: int, stride: int, dilation: int) -> int:
    """The size of a convolution's result along one side of an image that is padded already."""
    return (size - dilation * (kernel - 1) - 1) // stride + 1


class SparseMatrix:
    """`Y = X W^T (+ bias)` with the zeros of W skipped.

    A result is the same to the bit however many threads compute it, and differs from the dense one by rounding.
    Products may run in several threads at once.

    Args:
        weight: (rows, cols), float32, on the CPU, any strides, at least one row and one column. It is copied.
        library: from `hf_autosparse.kernels.library()`.
        values: torch.float32, or torch.bfloat16: the non-zeros are rounded to it and take 3 bytes with their column
            instead of 5; activations, sums and results stay float32.
    """

    def __init__(self, weight: Tensor, library: Library, values: torch.dtype = torch.float32):
        rows, cols = weight.shape
        blocks, slices = -(-cols // _BLOCK), -(-rows // _SLICE)
        count = torch.empty(blocks * rows, dtype=torch.int16, device="cpu")
        work = torch.empty(rows, dtype=torch.int64, device="cpu")
        arrays = {
            "first_row": torch.empty(slices + 1, dtype=torch.int64, device="cpu"),
            "first_step": torch.empty(slices + 1, dtype=torch.int64, device="cpu"),
            "length": torch.empty(slices * blocks, dtype=torch.int16, device="cpu"),
            "order": torch.empty(slices * blocks * _SLICE, dtype=torch.uint8, device="cpu"),
        }
        source = (weight.data_ptr(), *weight.stride())
        chunks = library.plan(
            *source, rows, cols, threads(), *(array.data_ptr() for array in (count, work, *arrays.values()))
        )
        steps = int(arrays["first_step"][chunks])
        arrays["half" if values is torch.bfloat16 else "value"] = torch.zeros(
            steps * _SLICE, dtype=values, device="cpu"
        )
        arrays["column"] = torch.zeros(steps * _SLICE, dtype=torch.uint8, device="cpu")
        self.rows, self.cols = rows, cols
        self.arrays = arrays  # keeps the memory that the struct points to
        pointers = (arrays[name].data_ptr() if name in arrays else None for name in _ARRAYS)
        self._struct = _Struct(rows, cols, chunks, *pointers)
        self._pointer = ctypes.addressof(self._struct)
        self._matmul, self._gradient = library.matmul, library.gradient
        if library.fill(self._pointer, *source, threads()) < 0:
            raise MemoryError(f"no memory to transpose a part of a {rows} x {cols} weight")

    @property
    def bytes(self) -> int:
        """Memory that the format takes."""
        return sum(array.nbytes for array in self.arrays.values())

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor | None:
        """`x W^T + bias`.

        Args:
            x: (..., cols), float32, on the CPU, contiguous, not empty.
            bias: (rows,), float32, on the CPU, contiguous.

        Returns:
            (..., rows), or None where an activation is infinite or NaN: take the dense product then, which multiplies
            it with the zeros of W too.
        """
        y = x.new_empty(*x.shape[:-1], self.rows)
        return y if self._run(x, y, x.numel() // self.cols, bias) else None

    def convolution(
        self,
        x: Tensor,
        bias: Tensor | None = None,
        kernel: tuple[int, int] = (1, 1),
        stride: tuple[int, int] = (1, 1),
        dilation: tuple[int, int] = (1, 1),
    ) -> Tensor | None:
        """`F.conv2d(x, W)` with W as (rows, channels * kernel height * kernel width).

        The pixels under the window are gathered tile by tile: the unfolded image is never in memory as a whole.

        Args:
            x: (images, channels, height, width), float32, on the CPU, contiguous, not empty, padded already and no
                smaller than the window.
            bias: (rows,), float32, on the CPU, contiguous.

        Returns:
            (images, rows, height, width) of the result, or None as in `product`.
        """
        size = x.shape[2:]
        out = [convolved(*side) for side in zip(size, kernel, stride, dilation, strict=True)]
        y = x.new_empty(x.shape[0], self.rows, *out)
        window = _Window(*size, *kernel, *stride, *dilation, *out, size[1] if stride == (1, 1) else out[1])
        pointer = ctypes.addressof(window)
        clean = [self._run(image, result, 0, bias, pointer) for image, result in zip(x, y, strict=True)]
        return y if all(clean) else None

    def gradient(self, grad: Tensor, x: Tensor, out: Tensor) -> bool:
        """The weight's gradient `grad^T x` where this matrix has entries: written into `out`, whose others stay.

        The same to the bit for any number of threads.

        Args:
            grad: (..., rows), the gradient of the product; float32, on the CPU, contiguous, not empty.
            x: (..., cols), what was multiplied; as many tokens, likewise.
            out: (rows, cols), float32, on the CPU, any strides.

        Returns:
            False where a gradient or an activation is infinite or NaN: `out` is undefined then, and the dense product
            is to be taken.
        """
        if "value" not in self.arrays:
            raise ValueError("a matrix with values = torch.bfloat16 has no gradient: build it with torch.float32")
        tokens = x.numel() // self.cols
        pointers = (self._pointer, grad.data_ptr(), x.data_ptr(), out.data_ptr())
        code = self._gradient(*pointers, *out.stride(), tokens, threads())
        if code < 0:
            raise MemoryError(f"no memory to transpose {tokens} x {self.rows + self.cols} numbers")
        return bool(code == 0)

    def _run(self, x: Tensor, y: Tensor, tokens: int, bias: Tensor | None, window: int | None = None) -> bool:
        bias_pointer = None if bias is None else bias.data_ptr()
        code = self._matmul(self._pointer, x.data_ptr(), y.data_ptr(), tokens, bias_pointer, window, threads())
        if code < 0:
            raise MemoryError(f"no memory for a tile of {self.cols} activations per token")
        return bool(code == 0)


@register_check
def _agrees_with_torch(library: Library) -> bool:
    generator = torch.Generator("cpu").manual_seed(0)
    weight, x, grad = (
        torch.randn(size, generator=generator, dtype=torch.float32, device="cpu")
        for size in ((70, 300), (61, 300), (61, 70))
    )
    weight = torch.where(weight.abs() > 1, weight, 0)
    matrix = SparseMatrix(weight, library)
    for tokens in (1, 5, 12, 61):  # tiles of every size
        product, expected = matrix.product(x[:tokens]), x[:tokens] @ weight.T
        if product is None or not torch.allclose(product, expected, rtol=1e-4, atol=1e-4):
            return False
    found = torch.zeros(70, 300, dtype=torch.float32, device="cpu")
    clean = matrix.gradient(grad, x, found)
    return clean and torch.allclose(found, (grad.T @ x) * (weight != 0), rtol=1e-4, atol=1e-4)


def _backend(name: str, values: torch.dtype) -> Backend:
    """The backend whose non-zeros have this dtype; activations, sums and results are float32."""

    def build(weight: Tensor) -> SparseMatrix | None:
        library = load_library()
        return None if library is None else SparseMatrix(weight, library, values)

    def version() -> str:
        library = load_library()
        return "" if library is None else library.version

    return Backend(
        name=name,
        device="cpu",
        dtypes=(torch.float32,),
        build=build,
        is_available=lambda: load_library() is not None,
        requirement="the C kernels",
        status=status,
        version=version,
        convolves=True,
        exact=lambda weight: values is torch.float32 or torch.equal(weight, weight.to(values).float()),
    )


register_backend(_backend("sparse", torch.float32))
register_backend(_backend("sparse_bfloat16", torch.bfloat16))

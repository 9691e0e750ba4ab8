"""A weight with zeros as one bit a weight and its packed non-zeros, and its product with activations, on a CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from ..backends import Backend, register_backend
from .binding import Library, threads
from .library import library as load_library
from .library import register_check, status

DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # of weights, activations and results
_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3}  # as in csrc/bitmask_matrix.h
_WORD, _PADDING = 64, 64
_MOST_COLUMNS_OF_INT8 = 1 << 16  # beyond, a sum of products can exceed 32 bits
_SCRATCH = 1 << 22  # bytes of dense rows at a time


class _Struct(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("rows", "cols", "type")] + [
        (name, ctypes.c_void_p) for name in ("mask", "first", "value", "scale", "sum")
    ]


def refusal(values: torch.dtype, weight: Tensor) -> str | None:
    """Why a weight (rows, cols) cannot be held with values of this dtype, or None."""
    if values is torch.int8 and weight.shape[1] > _MOST_COLUMNS_OF_INT8:
        return f"it has {weight.shape[1]} inputs, and sums of int8 products are exact up to {_MOST_COLUMNS_OF_INT8}"
    return None


class RowBitmaskMatrix:
    """`Y = X W^T (+ bias)` that reads one bit a weight and the packed non-zeros: the format of csrc/bitmask_matrix.h.

    A weight takes 1/8 byte and its share of non-zeros times the size of a value: at 80 % zeros 0.26 of a dense bfloat16
    weight. Sums are float32, or exact integers for int8. A result is the same to the bit however many threads compute
    it. Products may run in several threads at once.

    Args:
        weight: (rows, cols), float32, bfloat16 or float16, on the CPU, any strides, at least one row and one column.
        library: from `hf_autosparse.kernels.library()`.
        values: dtype of the non-zeros: the weight's, which keeps every bit (-0.0 becomes 0.0); bfloat16 for a float32
            weight, rounded; or int8: multiples of a scale for each row, its largest magnitude / 127. Activations are
            then rounded to int8 too, each token with a scale.

    Raises:
        ValueError: another dtype, no element, or too many columns for int8.
    """

    def __init__(self, weight: Tensor, library: Library, values: torch.dtype | None = None):
        values = weight.dtype if values is None else values
        _check(weight.dtype, values, tuple(weight.shape))
        self._allocate(library, weight.shape[0], weight.shape[1], values, weight.dtype)
        count = torch.empty(self.rows, dtype=torch.int64, device="cpu")
        self._plan(weight, 0, count)
        self._allocate_values(count)
        self._fill(weight, 0)

    @classmethod
    def from_packed(
        cls,
        bitmask: Tensor,
        values: Tensor,
        shape: Sequence[int],
        library: Library,
        dtype: torch.dtype | None = None,
    ) -> RowBitmaskMatrix:
        """The matrix of a weight as a packed checkpoint stores it (docs/packed_format.md); the dense one never exists.

        Another dtype of values goes through 4 MiB of dense rows at a time.

        Args:
            bitmask: uint8, (ceil(n / 8),), on the CPU, contiguous.
            values: (k,), float32, bfloat16 or float16, on the CPU, contiguous.
            shape: of the weight. The first size counts the rows, the others together the columns.
            dtype: of the matrix's values, as in the constructor.

        Raises:
            ValueError: sizes that do not fit each other, as many set bits as values not among them, or as in the
                constructor.
        """
        dtype = values.dtype if dtype is None else dtype
        rows, cols = shape[0], 1
        for size in shape[1:]:
            cols *= size
        _check(values.dtype, dtype, (rows, cols))
        if tuple(bitmask.shape) != (-(-rows * cols // 8),) or bitmask.dtype != torch.uint8:
            raise ValueError(
                f"bitmask has shape {tuple(bitmask.shape)} and dtype {bitmask.dtype}: a weight of shape {tuple(shape)}"
                f" has ({-(-rows * cols // 8)},) of torch.uint8; take the three tensors of one weight"
            )
        same = cls.__new__(cls)
        same._allocate(library, rows, cols, values.dtype, values.dtype)
        count = torch.empty(rows, dtype=torch.int64, device="cpu")
        library.bitmask_align(bitmask.data_ptr(), rows, cols, same._mask.data_ptr(), count.data_ptr(), threads())
        same._allocate_values(count)
        if len(values) != same.nonzeros:
            raise ValueError(
                f"values has {len(values)} elements: the bitmask marks {same.nonzeros}; take the three tensors of one"
                " weight"
            )
        same._value[: same.nonzeros].copy_(values)
        return same if dtype is values.dtype else same._converted(dtype)

    @property
    def nonzeros(self) -> int:
        """Number of values."""
        return int(self._first[-1])

    @property
    def bytes(self) -> int:
        """Memory that the format takes."""
        arrays = (self._mask, self._first, self._value, self._scale, self._sum)
        return sum(array.nbytes for array in arrays if array is not None)

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor | None:
        """`x W^T + bias`, in the dtype of x. Infinite and NaN activations meet zeros too, as in a dense product.

        Args:
            x: (..., cols), float32, bfloat16 or float16, on the CPU, contiguous, not empty.
            bias: (rows,), the same dtype, on the CPU, contiguous.

        Returns:
            (..., rows), or None where values are int8 and an activation is infinite or NaN: take the dense product.
        """
        y = torch.empty(*x.shape[:-1], self.rows, dtype=x.dtype, device="cpu")
        code = self._library.bitmask_matmul(
            self._pointer,
            _TYPES[x.dtype],
            x.data_ptr(),
            y.data_ptr(),
            x.numel() // self.cols,
            None if bias is None else bias.data_ptr(),
            threads(),
        )
        if code < 0:
            raise MemoryError(f"no memory for {self.cols} activations of each token")
        return y if code == 0 else None

    def to_dense(self, rows: slice = slice(None)) -> Tensor:
        """The weight or some of its rows, in its dtype: the bits it was made of, or what they were rounded to."""
        begin, end, _ = rows.indices(self.rows)
        held = torch.float32 if self.values is torch.int8 else self.values
        dense = torch.empty(max(0, end - begin), self.cols, dtype=held, device="cpu")
        self._library.bitmask_expand(self._pointer, begin, end, dense.data_ptr(), threads())
        return dense.to(self.dtype)

    def _converted(self, values: torch.dtype) -> RowBitmaskMatrix:
        """The same weight with other values, by some dense rows at a time."""
        other = type(self).__new__(type(self))
        other._allocate(self._library, self.rows, self.cols, values, self.dtype)
        step = max(1, _SCRATCH // (4 * self.cols))
        blocks = [slice(begin, min(self.rows, begin + step)) for begin in range(0, self.rows, step)]
        count = torch.empty(self.rows, dtype=torch.int64, device="cpu")
        for block in blocks:
            other._plan(self.to_dense(block), block.start, count)
        other._allocate_values(count)
        for block in blocks:
            other._fill(self.to_dense(block), block.start)
        return other

    def _allocate(self, library: Library, rows: int, cols: int, values: torch.dtype, dtype: torch.dtype) -> None:
        """Everything but the values. `dtype`: of the weight."""
        self.rows, self.cols, self.values, self.dtype = rows, cols, values, dtype
        self._library = library
        self._words = -(-cols // _WORD)
        self._mask = torch.empty(rows, self._words, dtype=torch.int64, device="cpu")
        quantized = values is torch.int8
        self._scale = torch.empty(rows, dtype=torch.float32, device="cpu") if quantized else None
        self._sum = torch.empty(rows, dtype=torch.int32, device="cpu") if quantized else None

    def _allocate_values(self, count: Tensor) -> None:
        self._first = torch.nn.functional.pad(count.cumsum(0), (1, 0))
        padding = _PADDING // self.values.itemsize
        self._value = torch.empty(self.nonzeros + padding, dtype=self.values, device="cpu")
        self._value[self.nonzeros :] = 0
        self._struct = self._struct_of(0, self.rows)
        self._pointer = ctypes.addressof(self._struct)

    def _struct_of(self, begin: int, end: int) -> _Struct:
        """Rows [begin, end) as a matrix of their own."""
        scale, total = (None if array is None else array[begin:].data_ptr() for array in (self._scale, self._sum))
        pointers = self._mask[begin:].data_ptr(), self._first[begin:].data_ptr(), self._value.data_ptr(), scale, total
        return _Struct(end - begin, self.cols, _TYPES[self.values], *pointers)

    def _plan(self, weight: Tensor, begin: int, count: Tensor) -> None:
        scale, total = (None if array is None else array[begin:].data_ptr() for array in (self._scale, self._sum))
        self._library.bitmask_plan(
            *(weight.data_ptr(), _TYPES[weight.dtype], *weight.stride(), *weight.shape, _TYPES[self.values]),
            *(self._mask[begin:].data_ptr(), count[begin:].data_ptr(), scale, total, threads()),
        )

    def _fill(self, weight: Tensor, begin: int) -> None:
        struct = self._struct_of(begin, begin + weight.shape[0])
        source = weight.data_ptr(), _TYPES[weight.dtype], *weight.stride()
        self._library.bitmask_fill(ctypes.addressof(struct), *source, threads())


def _check(dtype: torch.dtype, values: torch.dtype, shape: tuple[int, ...]) -> None:
    allowed = {dtype, torch.int8} | ({torch.bfloat16} if dtype is torch.float32 else set())
    if dtype not in DTYPES or values not in allowed or len(shape) != 2 or 0 in shape:
        raise ValueError(
            f"weight has shape {shape} and dtype {dtype}, values = {values}: a weight has rows and columns and is one"
            f" of {', '.join(map(str, DTYPES))}; values are of the weight's dtype, torch.int8, or for float32"
            " torch.bfloat16"
        )
    reason = refusal(values, torch.empty(shape, device="meta"))
    if reason is not None:
        raise ValueError(f"values = torch.int8 cannot hold the weight: {reason}; take another dtype of values")


@register_check
def _agrees_with_torch(library: Library) -> bool:
    generator = torch.Generator("cpu").manual_seed(0)
    weight, x = (
        torch.randn(size, generator=generator, dtype=torch.float32, device="cpu") for size in ((70, 300), (71, 300))
    )
    weight = torch.where(weight.abs() > 1, weight, 0)
    for dtype, values, tolerance in (
        (torch.float32, torch.float32, 1e-4),
        (torch.float32, torch.bfloat16, 0.1),
        (torch.bfloat16, torch.bfloat16, 0.3),
        (torch.float16, torch.float16, 0.04),
        (torch.float32, torch.int8, 1.0),
    ):
        matrix = RowBitmaskMatrix(weight.to(dtype), library, values)
        for tokens in (1, 3, 8, 16, 71):  # rows of every kind, tiles of every size
            product, expected = matrix.product(x[:tokens].to(dtype)), x[:tokens] @ weight.T
            if product is None or (product.float() - expected).abs().max() > tolerance:
                return False
    return True


def _backend(name: str, dtypes: tuple[torch.dtype, ...], values: torch.dtype | None) -> Backend:
    """The backend whose non-zeros have this dtype, or the weight's."""

    def build(weight: Tensor) -> RowBitmaskMatrix | None:
        library = load_library()
        return None if library is None else RowBitmaskMatrix(weight, library, values)

    def version() -> str:
        library = load_library()
        return "" if library is None else library.version

    return Backend(
        name=name,
        device="cpu",
        dtypes=dtypes,
        build=build,
        is_available=lambda: load_library() is not None,
        requirement="the C kernels",
        status=status,
        version=version,
        refusal=lambda weight: refusal(weight.dtype if values is None else values, weight),
        exact=lambda weight: values is None,
    )


# float32 weights have "sparse", which is as fast or faster where it was measured.
register_backend(_backend("bitmask_cpu", (torch.bfloat16, torch.float16), None))
register_backend(_backend("bitmask_int8", DTYPES, torch.int8))

"""A digest of a tensor's bytes that is computed at the speed of memory: it finds damage, not forgery.

The bytes, filled up with zeros, form rows of 1,024 little-endian 64-bit words. The digest is the CRC-32 of the tensor's
dtype and shape, of the sum of each row, and of the sum of each column, all sums modulo 2^64. Two different words lie in
different rows or in different columns, so words that change places are noticed, and damage within one row changes a
column's sum whatever it is. numpy adds words about twice as fast as zlib computes a CRC-32 or an Adler-32 of the bytes
themselves, and faster than it copies them (`docs/packed_format.md` has the figures).
"""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_WORDS = 1024  # of a row
_ROW = 8 * _WORDS  # bytes
_CHUNK = 32 * _ROW  # stays in the cache between the sums over rows and those over columns


class Digest:
    """The digest of one tensor, fed with its bytes in pieces of any length.

    Args:
        dtype: as safetensors calls it, such as "F32".
        shape: of the tensor.
    """

    def __init__(self, dtype: str, shape: tuple[int, ...]) -> None:
        self._crc = zlib.crc32(f"{dtype} {list(shape)}".encode())
        self._columns = np.zeros(_WORDS, "<u8")
        self._rest = np.empty(0, np.uint8)  # less than a row

    def update(self, data: npt.NDArray[np.uint8]) -> None:
        """Take the bytes that follow those taken before."""
        if len(self._rest):
            data = np.concatenate((self._rest, data))
        whole = len(data) // _ROW * _ROW
        for start in range(0, whole, _CHUNK):
            self._add(data[start : min(start + _CHUNK, whole)])
        self._rest = data[whole:].copy()

    def _add(self, rows: npt.NDArray[np.uint8]) -> None:
        words = rows.view("<u8").reshape(-1, _WORDS)
        self._crc = zlib.crc32(words.sum(axis=1).data, self._crc)
        self._columns += words.sum(axis=0)

    def hexdigest(self) -> str:
        """Eight hexadecimal digits. Nothing can be added after them."""
        if len(self._rest):
            self._add(np.pad(self._rest, (0, _ROW - len(self._rest))))
        return f"{zlib.crc32(self._columns.data, self._crc):08x}"


def raw_bytes(tensor: Tensor) -> npt.NDArray[np.uint8]:
    """The bytes of a tensor on the CPU, in C order, without a copy where it is contiguous."""
    flat = tensor.detach().contiguous().flatten()
    return flat.view(torch.uint8).numpy() if flat.numel() else np.empty(0, np.uint8)


def digest(tensor: Tensor, dtype: str, shape: tuple[int, ...]) -> str:
    """The digest of a whole tensor. `dtype` and `shape`: see `Digest`."""
    result = Digest(dtype, shape)
    result.update(raw_bytes(tensor))
    return result.hexdigest()

"""A saved model's tensors, read without its class and a piece at a time, however large they are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..utils.io import StrPath
from .bitmask_format import Entry, PackedFile, PackedFormatError
from .locate import locate
from .pack import weight_files

FLOATING = ("F64", "F32", "F16", "BF16", "F8_E5M2", "F8_E4M3")
_INTEGER = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class SavedModel:
    """Tensors by name, in natural order, plain or packed, whichever files hold them. Use as a context manager.

    Args:
        path_or_repo: the directory of a saved model, one .safetensors file, or a repository of the Hub, of which the
            weights are downloaded (into the usual cache).

    Raises:
        FileNotFoundError, PermissionError, ConnectionError: see `locate`.
        PackedFormatError: a damaged file or index, or a tensor that two files hold.
    """

    def __init__(self, path_or_repo: StrPath):
        found = locate(path_or_repo)
        self.name = str(path_or_repo)
        self.directory = found if found.is_dir() else found.parent
        self._home: dict[str, PackedFile] = {}
        with ExitStack() as stack:
            self.files = [stack.enter_context(PackedFile(path)) for path in _weight_files(found)]
            for file in self.files:
                for name in file.entries:
                    if name in self._home:
                        other = self._home[name].path.name
                        raise PackedFormatError(f"{file.path.name}, tensor {name}: is in {other} as well")
                    self._home[name] = file
            self._open_files = stack.pop_all()
        self.entries: dict[str, Entry] = {
            name: self._home[name].entries[name] for name in sorted(self._home, key=_natural)
        }

    def __enter__(self) -> SavedModel:
        return self

    def __exit__(self, *exception: object) -> None:
        self._open_files.close()

    @property
    def stored_bytes(self) -> int:
        """Size of the weight files."""
        return sum(file.path.stat().st_size for file in self.files)

    def pieces(self, name: str) -> Iterator[Tensor]:
        """See `PackedFile.pieces`."""
        return self._home[name].pieces(name)


def _weight_files(found: Path) -> list[Path]:
    if found.is_file():
        return [found]
    try:
        return weight_files(found)
    except FileNotFoundError as error:
        others = sorted(path.name for path in found.glob("*.safetensors"))
        raise FileNotFoundError(
            f"{error}" + (f" Or name one of its files: {', '.join(others)}" if others else "")
        ) from error


def zeros_in(piece: Tensor) -> int:
    """Number of zeros of a tensor with one dimension, -0.0 among them."""
    return len(piece) - int(np.count_nonzero(_magnitude(piece)))


def is_zero(piece: Tensor) -> npt.NDArray[np.bool_]:
    """Bool array, True where a tensor with one dimension is zero."""
    result: npt.NDArray[np.bool_] = _magnitude(piece) == 0
    return result


def _magnitude(piece: Tensor) -> npt.NDArray[Any]:
    """An integer for each element that is 0 where the element is: numpy counts them several times as fast as floats,
    and has no bfloat16."""
    if not piece.is_floating_point():
        numbers: npt.NDArray[Any] = piece.numpy()
        return numbers
    bits = piece.view(_INTEGER[piece.element_size()]).numpy()
    magnitude: npt.NDArray[Any] = bits & np.iinfo(bits.dtype).max  # the sign bit off
    return magnitude


def _natural(name: str) -> list[str | int]:
    """Sorts layers.2 before layers.10."""
    parts = re.split(r"(\d{1,18})", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]

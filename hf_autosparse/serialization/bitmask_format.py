"""The packed safetensors format, version 2: a bitmask and the non-zero values of each sparse weight, and digests.

`docs/packed_format.md` has it byte by byte, and version 1, which is still read. A file may come from anyone: headers
are checked before a payload is read, payloads before they are used, and no allocation exceeds what the checked sizes
call for.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..utils.io import StrPath
from .digest import Digest, digest, raw_bytes

FORMAT = "bitmask"
FORMAT_VERSION = 2  # what is written
# What the names of a packed weight's tensors add to its own, by version: bitmask, values, shape. Since version 2 the
# bitmask lies under the weight's own name, but never has its shape: a program that does not know the format, or does
# not see that the file is packed, fails on the shape instead of leaving the weight as it was initialised.
SUFFIXES = {1: ("_bitmask", "_values", "_shape"), 2: ("", "_values", "_shape")}
_FEWEST_DIMENSIONS = {1: 1, 2: 2}  # of a packed weight: a bitmask has one
_MARK = "autosparse_"
_METADATA = {
    1: {"autosparse_format", "autosparse_format_version"},
    2: {"autosparse_format", "autosparse_format_version", "autosparse_digests"},
}
_is_digest = re.compile("[0-9a-f]{8}").fullmatch

_INTEGER = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes: elements are moved as integers
_INFINITY = {torch.float32: 0x7F800000, torch.float16: 0x7C00, torch.bfloat16: 0x7F80}  # NaN is above
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_PLAIN_DTYPES = _DTYPES | {
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_MAX_DIMENSIONS = 8
_LONGEST_HEADER = 25_000_000  # bytes: some 200,000 tensors. safetensors takes 100 MB, which can swell to 2 GB of memory
_CHUNK = 1 << 16  # weights at a time: fits the cache; a multiple of 8, so chunks meet at byte borders
PIECE = 1 << 20  # elements that `PackedFile.pieces` reads at a time; a multiple of 8 too


class PackedFormatError(ValueError):
    """A packed checkpoint that is not what it says; the message names the file, the tensor and what was expected."""


def stored_keys(name: str, version: int = FORMAT_VERSION) -> tuple[str, str, str]:
    """The names under which a packed weight's bitmask, values and shape are stored."""
    bitmask, values, shape = SUFFIXES[version]
    return name + bitmask, name + values, name + shape


def is_reserved(key: str) -> bool:
    """Whether a plain tensor cannot have this name, because it ends as a packed weight's tensors do in some version."""
    return key.endswith(tuple(filter(None, (suffix for suffixes in SUFFIXES.values() for suffix in suffixes))))


def metadata(digests: Mapping[str, str]) -> dict[str, str]:
    """The `__metadata__` of a packed file.

    Args:
        digests: stored name -> `digest`, for every tensor of the file.
    """
    return {
        "format": "pt",
        "autosparse_format": FORMAT,
        "autosparse_format_version": str(FORMAT_VERSION),
        "autosparse_digests": json.dumps(dict(sorted(digests.items())), separators=(",", ":")),
    }


def encode(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pack one weight.

    Args:
        weight: float32, float16 or bfloat16, any device, 1 to 8 dimensions, all values finite.

    Returns:
        bitmask: uint8, (ceil(n / 8),): bit `i % 8` (the least significant first) of byte `i // 8` tells whether
            element i of the flattened (C order) weight is not zero. Unused bits are 0.
        values: the weight's dtype, (k,): the non-zero elements in that order. -0.0 counts as zero.
        shape: int64, (dimensions,).

    Raises:
        ValueError: another dtype, number of dimensions, or a value that is not finite.
    """
    if weight.dtype not in _INFINITY or not 1 <= weight.dim() <= _MAX_DIMENSIONS or weight.numel() == 0:
        raise ValueError(
            f"cannot pack a weight of dtype {weight.dtype} and shape {tuple(weight.shape)}: float32, float16 or"
            f" bfloat16 with 1 to {_MAX_DIMENSIONS} dimensions and at least one element are allowed"
        )
    integers = weight.detach().cpu().contiguous().flatten().view(_INTEGER[weight.itemsize]).numpy()
    bitmask = np.empty(-(-len(integers) // 8), np.uint8)
    values = np.empty_like(integers)
    done = 0
    for start in range(0, len(integers), _CHUNK):
        chunk = integers[start : start + _CHUNK]
        magnitude = chunk & np.iinfo(chunk.dtype).max  # the sign bit off: -0.0 counts as zero
        if magnitude.max() >= _INFINITY[weight.dtype]:
            raise ValueError("cannot pack a weight with values that are not finite")
        kept = magnitude != 0
        bitmask[start // 8 : (start + _CHUNK) // 8] = np.packbits(kept, bitorder="little")
        positions = np.flatnonzero(kept)
        # Gathering at positions beats boolean indexing several times; mode "clip" writes to `out` without a copy.
        np.take(chunk, positions, out=values[done : done + len(positions)], mode="clip")
        done += len(positions)
    values = values[:done].copy()  # frees what was too much
    shape = torch.tensor(weight.shape, dtype=torch.int64)
    return torch.from_numpy(bitmask), torch.from_numpy(values).view(weight.dtype), shape


def decode(bitmask: Tensor, values: Tensor, shape: tuple[int, ...], name: str = "weight") -> Tensor:
    """Inverse of `encode`: a dense weight of `shape`, in `values`' dtype (cast or not) and on its device.

    Raises:
        PackedFormatError: the sizes don't fit each other, or the mask's bits don't match the number of values.
    """
    count = math.prod(shape)
    _check_sizes(name, tuple(bitmask.shape), tuple(values.shape), shape)
    bits = bitmask.cpu().contiguous().numpy()
    _check_bits(name, bits, len(values), count)
    source = values.detach().cpu().contiguous().view(_INTEGER[values.itemsize]).numpy()
    dense = np.zeros(count, source.dtype)
    done = 0
    for start in range(0, count, _CHUNK):
        kept = np.unpackbits(bits[start // 8 : (start + _CHUNK) // 8], bitorder="little")
        positions = np.flatnonzero(kept.view(bool))  # bool takes numpy's fast path
        dense[start : start + _CHUNK][positions] = source[done : done + len(positions)]
        done += len(positions)
    return torch.from_numpy(dense).view(values.dtype).reshape(shape).to(values.device)


def _check_sizes(name: str, bitmask: tuple[int, ...], values: tuple[int, ...], shape: tuple[int, ...]) -> None:
    count = math.prod(shape)  # Python integers don't overflow
    if not 1 <= len(shape) <= _MAX_DIMENSIONS or any(size < 1 for size in shape):
        raise PackedFormatError(f"{name}: shape {shape} is not allowed, expected 1 to {_MAX_DIMENSIONS} sizes >= 1")
    if bitmask != (-(-count // 8),):
        raise PackedFormatError(
            f"{name}: the bitmask has shape {bitmask}, expected ({-(-count // 8)},) for a weight of shape {shape}"
        )
    if len(values) != 1 or values[0] > count:
        raise PackedFormatError(f"{name}: the values have shape {values}, expected (k,) with k at most {count}")


def _check_bits(name: str, bits: npt.NDArray[np.uint8], values: int, count: int) -> None:
    chunks = range(0, len(bits), _CHUNK)
    found = sum(int(np.bitwise_count(bits[i : i + _CHUNK]).sum(dtype=np.int64)) for i in chunks)
    if found != values:
        raise PackedFormatError(f"{name}: the bitmask marks {found} weights, but there are {values} values")
    if count % 8 and int(bits[-1]) >> (count % 8):
        raise PackedFormatError(f"{name}: the bitmask marks weights beyond the {count} there are")


def check_version(where: str, found_format: object, found_version: object) -> int:
    """The version as a number.

    Raises:
        PackedFormatError: this release does not read that format and version.
    """
    versions = {str(version): version for version in SUFFIXES}
    if found_format != FORMAT or str(found_version) not in versions:
        raise PackedFormatError(
            f"{where}: packed format {found_format!r} version {found_version!r}; this release reads {FORMAT!r} version"
            f" {' and '.join(versions)}. Upgrade hf-autosparse, or ask for a plain checkpoint"
        )
    return versions[str(found_version)]


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object's members, each name once: parsers differ in which of two they take."""
    members: dict[str, object] = {}
    for name, value in pairs:
        if name in members:
            raise PackedFormatError(f"the header has {name!r} twice, expected once")
        members[name] = value
    return members


@dataclass(frozen=True)
class Entry:
    """A tensor as the file declares it. `values`: how many non-zero values it stores, None where it is not packed."""

    shape: tuple[int, ...]
    dtype: str
    values: int | None

    @property
    def packed(self) -> bool:
        return self.values is not None

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class _Opened(Protocol):
    """safetensors' `safe_open`, whose own stubs have no types."""

    def metadata(self) -> dict[str, str] | None: ...
    def keys(self) -> list[str]: ...
    def get_slice(self, name: str) -> Any: ...
    def get_tensor(self, name: str) -> Tensor: ...
    def __exit__(self, *exception: object) -> None: ...


class PackedFile:
    """One safetensors file, packed or plain, opened lazily: only the header is read and checked on opening.

    Use as a context manager.

    Attributes:
        entries: tensor's name (a packed weight counts as one) -> its `Entry`.
        version: of the packed format; None for a plain file.

    Raises:
        FileNotFoundError: there is no such file, or it is a folder, a pipe or a link that leads nowhere.
        OSError: the system does not let it be read.
        PackedFormatError: it is no whole safetensors file, or its header is too long or does not follow the format.
    """

    def __init__(self, path: StrPath):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path} is not a file")
        with open(self.path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if length > _LONGEST_HEADER:
            raise PackedFormatError(
                f"{self.path} is not a whole safetensors file, or one of too many tensors: its header has {length}"
                f" bytes, expected at most {_LONGEST_HEADER}. Save the model in several shards (max_shard_size)"
            )
        # Not mapped into memory: the system refuses that for a file larger than memory and swap.
        self._header = self._open(framework="np", backend="pread")
        self._offsets = self._read_offsets()
        self.version, self._digests = self._read_metadata()
        self.entries = self._read_header()

    def _open(self, **how: str) -> _Opened:
        try:
            return cast(_Opened, safe_open(str(self.path), **how))
        except (SafetensorError, OSError, ValueError, OverflowError) as error:
            raise PackedFormatError(f"{self.path} is not a whole safetensors file: {error}") from error
        except RuntimeError as error:  # torch's, if the system has too little memory
            raise OSError(f"{self.path} cannot be mapped into memory: {error}") from error

    @cached_property
    def _file(self) -> _Opened:
        """For reading whole tensors: mapped into memory, so that plain ones take none of their own."""
        return self._open(framework="pt", device="cpu")

    def __enter__(self) -> PackedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exception: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._header.__exit__(kind, exception, traceback)
        if "_file" in self.__dict__:
            self._file.__exit__(kind, exception, traceback)

    @property
    def packed_names(self) -> list[str]:
        return [name for name, entry in self.entries.items() if entry.packed]

    def _label(self, name: str) -> str:
        return f"{self.path.name}, tensor {name}"

    @property
    def marked(self) -> bool:
        """Whether the file says that it is packed."""
        return self.version is not None

    def _read_metadata(self) -> tuple[int | None, dict[str, str]]:
        """The version (None: a plain file), and stored name -> digest (empty in version 1)."""
        stated = self._header.metadata() or {}
        marks = {key for key in stated if key.startswith(_MARK)}
        if not marks:
            return None, {}
        found = (stated.get("autosparse_format"), stated.get("autosparse_format_version"))
        version = check_version(self.path.name, *found)
        if unknown := sorted(marks - _METADATA[version]):
            raise PackedFormatError(f"{self.path.name}: unknown metadata {unknown}")
        return version, self._read_digests(stated.get("autosparse_digests", "")) if version > 1 else {}

    def _read_digests(self, text: str) -> dict[str, str]:
        try:
            digests = json.loads(text, object_pairs_hook=_unique)
        except PackedFormatError as error:
            raise PackedFormatError(f"{self.path.name}, autosparse_digests: {error}") from error
        except (ValueError, RecursionError) as error:
            raise PackedFormatError(f"{self.path.name}: autosparse_digests is not valid JSON: {error}") from error
        if not isinstance(digests, dict) or not all(isinstance(d, str) and _is_digest(d) for d in digests.values()):
            raise PackedFormatError(
                f"{self.path.name}: autosparse_digests is {text!r:.80}, expected an object with eight hexadecimal"
                " digits for each tensor"
            )
        self._compare_names(set(digests), set(self._header.keys()))
        return digests

    def _compare_names(self, expected: Collection[str], found: Collection[str]) -> None:
        for name in sorted({*expected} ^ {*found}):
            trouble = "is not in the file" if name in expected else "is in the file"
            listed = "which lists it" if name in expected else "but not listed"
            raise PackedFormatError(f"{self._label(name)}: {trouble}, {listed} in autosparse_digests: it is damaged")

    def _read_header(self) -> dict[str, Entry]:
        keys = set(self._header.keys())
        if self.version is None:
            return {key: self._declared(key) for key in sorted(keys)}
        suffixes = tuple(filter(None, SUFFIXES[self.version]))
        entries: dict[str, Entry] = {}
        parts: set[str] = set()
        for key in sorted(keys):
            suffix = next((suffix for suffix in suffixes if key.endswith(suffix)), None)
            if suffix is None:
                continue
            name = key.removesuffix(suffix)
            stored = stored_keys(name, self.version)
            parts.update(stored)
            missing = [part for part in stored if part not in keys]
            if missing or (name in keys and name not in stored):
                trouble = f"{', '.join(missing)} missing" if missing else f"{name} is there as well"
                raise PackedFormatError(f"{self._label(key)}: a packed weight is three tensors, but {trouble}")
            if name not in entries:
                entries[name] = self._declared_packed(name)
        entries |= {key: self._declared(key) for key in keys - parts}
        return dict(sorted(entries.items()))

    def _declared(self, key: str) -> Entry:
        view = self._header.get_slice(key)
        return Entry(tuple(view.get_shape()), view.get_dtype(), None)

    def _declared_packed(self, name: str) -> Entry:
        assert self.version is not None
        keys = stored_keys(name, self.version)
        bitmask, values, shape = map(self._declared, keys)
        for entry, key, allowed in zip((bitmask, values, shape), keys, (["U8"], [*_DTYPES], ["I64"]), strict=True):
            if entry.dtype not in allowed:
                raise PackedFormatError(f"{self._label(key)}: dtype {entry.dtype}, expected {' or '.join(allowed)}")
        fewest = _FEWEST_DIMENSIONS[self.version]
        if len(shape.shape) != 1 or not fewest <= shape.shape[0] <= _MAX_DIMENSIONS:
            raise PackedFormatError(
                f"{self._label(keys[2])}: shape {shape.shape}, expected {fewest} to {_MAX_DIMENSIONS} sizes"
            )
        sizes = self._read(keys[2], "I64", 0, shape.shape[0])
        self._compare_digest(keys[2], digest(sizes, shape.dtype, shape.shape) if self._digests else "")
        result = Entry(tuple(sizes.tolist()), values.dtype, values.shape[0] if len(values.shape) == 1 else -1)
        _check_sizes(self._label(name), bitmask.shape, values.shape, result.shape)
        return result

    def _compare_digest(self, key: str, found: str) -> None:
        if self._digests and found != self._digests[key]:
            raise PackedFormatError(
                f"{self._label(key)}: its content has the digest {found}, expected {self._digests[key]}: it is damaged"
            )

    def _tensor(self, key: str) -> Tensor:
        try:
            return self._file.get_tensor(key)
        except (SafetensorError, TypeError, RuntimeError) as error:  # a dtype or sizes that torch does not have
            declared = self._declared(key)
            raise PackedFormatError(
                f"{self._label(key)}: torch cannot hold dtype {declared.dtype} with shape {declared.shape}: {error}"
            ) from error

    def stored(self, name: str) -> tuple[str, ...]:
        """The names under which a tensor lies in the file: three (bitmask, values, shape) for a packed weight."""
        if self.version is None or not self.entries[name].packed:
            return (name,)
        return stored_keys(name, self.version)

    def stored_bytes(self, name: str) -> int:
        """Bytes that a tensor takes in the file, without the header."""
        return sum(self._tensor(key).nbytes for key in self.stored(name))

    def check(self, name: str) -> None:
        """Check a tensor's content: its digest; of a packed weight, as many bits as values, none beyond the end, all
        values finite.

        Raises:
            PackedFormatError: any of these does not hold.
        """
        if self._digests:
            for key in self.stored(name):
                declared = self._declared(key)
                self._compare_digest(key, digest(self._tensor(key), declared.dtype, declared.shape))
        entry = self.entries[name]
        if entry.values is None:
            return
        bitmask, values = map(self._tensor, self.stored(name)[:2])
        _check_bits(self._label(name), bitmask.numpy(), entry.values, entry.count)
        integers = values.view(_INTEGER[values.itemsize]).numpy()
        chunks = (integers[i : i + _CHUNK] for i in range(0, len(integers), _CHUNK))
        if any((chunk & np.iinfo(chunk.dtype).max).max() >= _INFINITY[values.dtype] for chunk in chunks):
            raise PackedFormatError(f"{self._label(name)}: holds values that are not finite (NaN or infinity)")

    def dense(self, name: str) -> Tensor:
        """The tensor in plain form, checked first."""
        self.check(name)
        entry = self.entries[name]
        if not entry.packed:
            return self._tensor(name)
        bitmask, values = map(self._tensor, self.stored(name)[:2])
        return decode(bitmask, values, entry.shape, self._label(name))

    def pieces(self, name: str) -> Iterator[Tensor]:
        """The tensor's elements in C order, as 1-D tensors of `PIECE` elements and a rest: reads a tensor of any size
        in bounded memory. A packed weight is unpacked on the way; its values may be infinite or NaN. Digests are
        compared at the end.

        Raises:
            PackedFormatError: torch does not compute with the tensor's dtype, the mask's bits don't match the number of
                values, a digest differs, or the file was changed after it was opened.
        """
        entry = self.entries[name]
        keys = self.stored(name)
        digests = {key: Digest(self._declared(key).dtype, self._declared(key).shape) for key in keys[:2]}
        taken = 0
        for start in range(0, entry.count, PIECE):
            stop = min(start + PIECE, entry.count)
            if entry.values is None:
                piece = self._read(name, entry.dtype, start, stop)
                self._digest(digests[name], piece)
                yield piece
                continue
            bits = self._read(keys[0], "U8", start // 8, -(-stop // 8))
            marked = int(np.bitwise_count(bits.numpy()).sum(dtype=np.int64))
            values = self._read(keys[1], entry.dtype, taken, min(taken + marked, entry.values))
            self._digest(digests[keys[0]], bits)
            self._digest(digests[keys[1]], values)
            yield decode(bits, values, (stop - start,), self._label(name))
            taken += marked
        if entry.values is not None and taken != entry.values:
            raise PackedFormatError(
                f"{self._label(name)}: the bitmask marks {taken} weights, but there are {entry.values} values"
            )
        for key, found in digests.items():
            self._compare_digest(key, found.hexdigest())

    def _digest(self, found: Digest, piece: Tensor) -> None:
        if self._digests:
            found.update(raw_bytes(piece))

    def _read(self, key: str, dtype: str, start: int, stop: int) -> Tensor:
        """Elements `start` to `stop` of a stored tensor, flat, in memory of their own."""
        if dtype not in _PLAIN_DTYPES:
            raise PackedFormatError(f"{self._label(key)}: dtype {dtype}, expected one of {', '.join(_PLAIN_DTYPES)}")
        size = _PLAIN_DTYPES[dtype].itemsize
        count = (stop - start) * size
        data = np.fromfile(self.path, np.uint8, count, offset=self._offsets[key] + start * size)
        if len(data) != count:
            raise PackedFormatError(f"{self._label(key)}: the file was changed after it had been opened")
        if not count:
            return torch.empty(0, dtype=_PLAIN_DTYPES[dtype])  # torch refuses to view an empty array
        return torch.from_numpy(data).view(_PLAIN_DTYPES[dtype])

    def _read_offsets(self) -> dict[str, int]:
        """Where each stored tensor begins in the file: safetensors has checked it, but does not tell.

        Nor does it mind a name that is there twice; we do.
        """
        try:
            with open(self.path, "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                text = file.read(min(length, _LONGEST_HEADER)).decode()
            # Numbers stay text: Python has a limit on digits to trip over, in members that safetensors skips.
            header = json.loads(text, object_pairs_hook=_unique, parse_int=str)
            return {key: 8 + length + int(header[key]["data_offsets"][0]) for key in self._header.keys()}
        except PackedFormatError as error:
            raise PackedFormatError(f"{self.path.name}: {error}") from error
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise PackedFormatError(f"{self.path} was changed after it had been opened: {error!r}") from error

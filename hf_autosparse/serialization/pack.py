"""`pack` a checkpoint into the packed format, `unpack` it again. One shard is in memory at a time."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from ..layers.saving import deployed
from ..layers.sparsify import sparse_layers
from ..utils.io import StrPath, flush_to_disk, read_json_object
from ..utils.progress import progress_bar
from .bitmask_format import (
    FORMAT,
    FORMAT_VERSION,
    PackedFile,
    PackedFormatError,
    check_version,
    encode,
    is_reserved,
    metadata,
    stored_keys,
)
from .digest import digest
from .files import INDEX, MODEL_CONFIG, QUANT_METHOD, WEIGHTS, is_private

_MAX_JSON = 100_000_000  # bytes, as safetensors allows its headers: an index holds about the same


@dataclass(frozen=True)
class PackSummary:
    """What `pack` or `unpack` did. Bytes are those of the weight files, headers included."""

    source_bytes: int
    output_bytes: int
    packed: tuple[str, ...]
    plain: tuple[str, ...]


def weight_files(directory: StrPath) -> list[Path]:
    """The safetensors files that hold a checkpoint's weights: one, or those its index names. As for transformers, one
    file takes precedence.

    Raises:
        FileNotFoundError: there are none, or one that the index names is missing.
        PackedFormatError: the index is damaged or points outside the directory.
    """
    directory = Path(directory)
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
    if not (directory / INDEX).is_file():
        raise FileNotFoundError(f"{directory} holds neither {WEIGHTS} nor {INDEX}: is it a saved model?")
    files = [directory / name for name in shard_names(directory / INDEX)]
    for path in files:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing, but {INDEX} names it: was the download interrupted?")
    return files


def shard_names(index: Path) -> list[str]:
    """The weight files that an index names, sorted.

    Raises:
        PackedFormatError: the index is damaged or points outside its directory.
    """
    return sorted(set(_weight_map(index).values()))


def check_index(index: Path, stored: dict[str, set[str]]) -> None:
    """Raise PackedFormatError if the index names a tensor that the file does not hold. `stored`: file name -> keys."""
    for key, name in _weight_map(index).items():
        if key not in stored.get(name, ()):
            raise PackedFormatError(f"{index.name}, tensor {key}: expected in {name}, which does not hold it")


def _weight_map(index: Path) -> dict[str, str]:
    """Stored tensor -> name of a file beside the index."""
    weight_map = _json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise PackedFormatError(f"{index}: weight_map is {weight_map!r:.80}, expected an object that is not empty")
    for key, name in weight_map.items():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise PackedFormatError(
                f"{index.name}, tensor {key}: is in {name!r:.80}, expected a .safetensors file beside the index"
            )
    return weight_map


def _json_object(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path, _MAX_JSON)
    except ValueError as error:
        raise PackedFormatError(str(error)) from error


def open_files(paths: list[Path]) -> Iterator[PackedFile]:
    """Open one file after the other.

    Raises:
        FileNotFoundError, PackedFormatError: as PackedFile; a tensor lies in two files, or has one of the names that
            the format reserves in a file that is not marked as packed.
    """
    seen: dict[str, str] = {}
    for path in paths:
        with PackedFile(path) as file:
            for name in file.entries:
                label = f"{path.name}, tensor {name}"
                if name in seen:
                    raise PackedFormatError(f"{label}: is in {seen[name]} as well, expected in one file")
                if not file.marked and is_reserved(name):
                    raise PackedFormatError(
                        f"{label}: names that end like this are reserved for packed weights, but the file is not marked"
                        " as packed"
                    )
                seen[name] = path.name
            yield file


def is_packable(name: str, weight: Tensor) -> bool:
    """Whether packing makes this tensor smaller: called `*.weight`, two dimensions or more, and enough zeros."""
    if weight.dim() < 2 or name.split(".")[-1] != "weight" or not weight.is_floating_point():
        return False
    bits = weight.element_size() * 8
    return bits in (16, 32) and int(weight.count_nonzero()) * bits + weight.numel() < weight.numel() * bits


def pack(source: nn.Module | StrPath, output: StrPath, progress: bool = False) -> PackSummary:
    """Write a model in the packed format, with the files (not the folders) that lie beside its weights.

    Args:
        source: a model (sparse, finalized, or any with zeros), or the directory of a saved one.
        output: a directory that does not exist yet, or is empty; it is filled whole or not at all. Until then
            everything is in `.NAME-*` directories beside it, which a kill leaves behind; they hinder nothing and may be
            deleted.
        progress: show a bar on a terminal if it takes longer than two seconds.

    Raises:
        FileExistsError: `output` exists and is no empty directory.
        PackedFormatError: a file of the source is damaged.
        ValueError: no weight has enough zeros to become smaller, one holds NaN or infinity, or the source is packed or
            quantised already.
    """
    if isinstance(source, nn.Module):
        _check_free(output)
        with _beside(output) as plain:
            save_plain(source, plain)
            return pack(plain, output, progress)
    return _rewrite(source, output, _pack_shard, _mark_packed, "packing" if progress else None)


def unpack(source: StrPath, output: StrPath, progress: bool = False) -> PackSummary:
    """Turn a packed checkpoint back into plain safetensors that load without this package.

    `output` and `progress`: as for `pack`.

    Raises:
        FileExistsError: `output` exists and is no empty directory.
        FileNotFoundError: the source has no weights, or a shard is missing.
        PackedFormatError: the source is no sound packed checkpoint; the message names the file and the tensor.
    """
    return _rewrite(source, output, _unpack_shard, _mark_plain, "unpacking" if progress else None)


def save_plain(model: nn.Module, directory: StrPath) -> None:
    """Save a model, sparse or not, as stock libraries load it: effective weights with exact zeros."""
    save_pretrained: Callable[..., object] | None = getattr(model, "save_pretrained", None)
    if save_pretrained is not None:
        with deployed(model):
            save_pretrained(directory)
    elif sparse_layers(model):
        raise ValueError(f"{type(model).__name__} is no transformers model: call finalize(model) before packing it")
    else:
        save_model(model, str(Path(directory) / WEIGHTS))


@dataclass(frozen=True)
class _Shard:
    """What is written into one file."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    packed: list[str]  # names of the weights that are packed in the source or in this file


_Advance: TypeAlias = "Callable[[int], object]"  # takes a number of bytes that are done


def _pack_shard(file: PackedFile, advance: _Advance) -> _Shard:
    if file.packed_names:
        raise ValueError(f"{file.path} is packed already")
    tensors, digests, packed = {}, {}, []
    for name, entry in file.entries.items():
        tensor = file.dense(name)
        advance(tensor.nbytes)
        if not is_packable(name, tensor):
            tensors[name] = tensor
            digests[name] = digest(tensor, entry.dtype, entry.shape)
            continue
        try:
            parts = encode(tensor)
        except ValueError as error:
            raise ValueError(f"{file.path.name}, tensor {name}: {error}") from error
        for key, part, dtype in zip(stored_keys(name), parts, ("U8", entry.dtype, "I64"), strict=True):
            tensors[key] = part
            digests[key] = digest(part, dtype, tuple(part.shape))
        packed.append(name)
    return _Shard(tensors, metadata(digests), packed)


def _unpack_shard(file: PackedFile, advance: _Advance) -> _Shard:
    tensors = {}
    for name in file.entries:
        tensors[name] = file.dense(name)
        advance(file.stored_bytes(name))
    return _Shard(tensors, {"format": "pt"}, file.packed_names)


def _mark_packed(config: dict[str, Any]) -> None:
    if "quantization_config" in config:
        raise ValueError("config.json has a quantization_config: the checkpoint is packed or quantised already")
    config["quantization_config"] = {
        "quant_method": QUANT_METHOD,
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
    }


def _mark_plain(config: dict[str, Any]) -> None:
    mark = config.pop("quantization_config", None)
    if not isinstance(mark, dict) or mark.get("quant_method") != QUANT_METHOD:
        raise PackedFormatError(f"config.json: quantization_config is {mark!r}, expected that of a packed checkpoint")
    check_version("config.json", mark.get("format"), mark.get("format_version"))


def _rewrite(
    source: StrPath,
    output: StrPath,
    convert: Callable[[PackedFile, _Advance], _Shard],
    mark: Callable[[dict[str, Any]], None],
    label: str | None,
) -> PackSummary:
    source = Path(source)
    files = weight_files(source)
    sharded = files != [source / WEIGHTS]
    weight_map: dict[str, str] = {}
    stored: dict[str, set[str]] = {}
    packed: list[str] = []
    plain: list[str] = []
    source_bytes = output_bytes = 0
    total = sum(path.stat().st_size for path in files)
    with _appearing(output) as staging, progress_bar(total, label) as bar:
        for file in open_files(files):
            name = file.path.name
            stored[name] = {key for entry in file.entries for key in file.stored(entry)}
            shard = convert(file, bar.update)
            packed += shard.packed
            plain += file.entries.keys() - set(shard.packed)
            save_file(shard.tensors, staging / name, shard.metadata)
            weight_map |= dict.fromkeys(shard.tensors, name)
            source_bytes += file.path.stat().st_size
            output_bytes += (staging / name).stat().st_size
        if not packed:
            raise ValueError(
                f"{source}: no weight is packed, or has enough zeros to become smaller by packing (the fraction of"
                " zeros must exceed 1 / bits per value)"
            )
        if sharded:
            check_index(source / INDEX, stored)
            index = {"metadata": {"total_size": output_bytes}, "weight_map": dict(sorted(weight_map.items()))}
            (staging / INDEX).write_text(json.dumps(index, indent=2) + "\n")
        if (source / MODEL_CONFIG).is_file():
            config = _json_object(source / MODEL_CONFIG)
            mark(config)
            (staging / MODEL_CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        for path in sorted(source.iterdir()):
            left_out = path.suffix == ".safetensors" or path.name == INDEX or is_private(path.name)
            if path.is_file() and not left_out and not (staging / path.name).exists():
                shutil.copy2(path, staging / path.name)
    return PackSummary(source_bytes, output_bytes, tuple(sorted(packed)), tuple(sorted(plain)))


@contextmanager
def _appearing(output: StrPath) -> Iterator[Path]:
    """A directory to write into, which becomes `output` when the block ends well: a kill leaves nothing there."""
    _check_free(output)
    with _beside(output) as staging:
        yield staging
        for path in staging.iterdir():
            flush_to_disk(path)
        target = Path(os.path.realpath(output))  # an empty directory may be reached by a link
        if target.is_dir():
            shutil.copymode(target, staging)
        staging.rename(target)  # fails if somebody else wrote into it meanwhile


def _check_free(output: StrPath) -> None:
    """Raise FileExistsError, which names what is in the way, unless `output` is absent or an empty directory."""
    advice = "nothing is overwritten, give a new or an empty directory"
    if os.path.isdir(output):
        if names := sorted(os.listdir(output)):
            others = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise FileExistsError(f"{output} exists and holds {', '.join(names[:3])}{others}: {advice}")
    elif os.path.lexists(output):
        kind = "a link that leads nowhere" if os.path.islink(output) else "a file"
        raise FileExistsError(f"{output} exists and is {kind}: {advice}")


@contextmanager
def _beside(output: StrPath) -> Iterator[Path]:
    """A temporary directory on the file system of `output`, gone after the block unless it was renamed."""
    output = Path(os.path.realpath(output))
    output.parent.mkdir(parents=True, exist_ok=True)
    directory = output.with_name(f".{output.name}-{secrets.token_hex(8)}")
    # Not tempfile.mkdtemp: its directories are for their owner alone, and the usual permissions can be found out only
    # by changing the umask of the whole process for a moment.
    directory.mkdir()
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)

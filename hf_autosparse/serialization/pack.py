"""`pack` a checkpoint into the packed format, `unpack` it again. One shard is in memory at a time."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from ..layers.sparsify import deployable_state_dict, sparse_layers
from ..utils.progress import progress_bar
from .bitmask_format import (
    FORMAT,
    FORMAT_VERSION,
    METADATA,
    SUFFIXES,
    PackedFile,
    PackedFormatError,
    check_version,
    encode,
    split_name,
)
from .files import INDEX, MODEL_CONFIG, WEIGHTS, is_private

QUANT_METHOD = "autosparse"
_MAX_JSON = 100_000_000  # bytes, as safetensors allows its headers: an index holds about the same


@dataclass(frozen=True)
class PackSummary:
    """What `pack` or `unpack` did. Bytes are those of the weight files, headers included."""

    source_bytes: int
    output_bytes: int
    packed: tuple[str, ...]
    plain: tuple[str, ...]


def weight_files(directory: str | os.PathLike) -> list[Path]:
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


def _json_object(path: Path) -> dict:
    size = path.stat().st_size
    if size > _MAX_JSON:
        raise PackedFormatError(f"{path} has {size} bytes, expected at most {_MAX_JSON}")
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise PackedFormatError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise PackedFormatError(f"{path} holds a {type(values).__name__}, expected a JSON object")
    return values


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
                if not file.marked and split_name(name)[1]:
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


def pack(source: nn.Module | str | os.PathLike, output: str | os.PathLike, progress: bool = False) -> PackSummary:
    """Write a model in the packed format, with the files (not the folders) that lie beside its weights.

    Args:
        source: a model (sparse, finalized, or any with zeros), or the directory of a saved one.
        output: a directory that does not exist yet; it appears whole or not at all. Until then everything is in
            `.NAME-*` folders beside it, which a kill leaves behind; they hinder nothing and may be deleted.
        progress: show a bar on a terminal if it takes longer than two seconds.

    Raises:
        FileExistsError: `output` exists.
        PackedFormatError: a file of the source is damaged.
        ValueError: no weight has enough zeros to become smaller, one holds NaN or infinity, or the source is packed or
            quantised already.
    """
    if isinstance(source, nn.Module):
        _check_absent(output)
        with _beside(output) as plain:
            save_plain(source, plain)
            return pack(plain, output, progress)
    return _rewrite(source, output, _pack_shard, _mark_packed, "packing" if progress else None)


def unpack(source: str | os.PathLike, output: str | os.PathLike, progress: bool = False) -> PackSummary:
    """Turn a packed checkpoint back into plain safetensors that load without this package.

    `output` and `progress`: as for `pack`.

    Raises:
        FileExistsError: `output` exists.
        FileNotFoundError: the source has no weights, or a shard is missing.
        PackedFormatError: the source is no sound packed checkpoint; the message names the file and the tensor.
    """
    return _rewrite(source, output, _unpack_shard, _mark_plain, "unpacking" if progress else None)


def save_plain(model: nn.Module, directory: str | os.PathLike) -> None:
    """Save a model, sparse or not, as stock libraries load it: effective weights with exact zeros."""
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(directory, state_dict=deployable_state_dict(model) if sparse_layers(model) else None)
    elif sparse_layers(model):
        raise ValueError(f"{type(model).__name__} is no transformers model: call finalize(model) before packing it")
    else:
        save_model(model, str(Path(directory) / WEIGHTS))


def _pack_shard(file: PackedFile, advance: Callable) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    if file.packed_names:
        raise ValueError(f"{file.path} is packed already")
    tensors, packed = {}, []
    for name in file.entries:
        tensor = file.dense(name)
        advance(tensor.nbytes)
        if not is_packable(name, tensor):
            tensors[name] = tensor
            continue
        try:
            parts = encode(tensor)
        except ValueError as error:
            raise ValueError(f"{file.path.name}, tensor {name}: {error}") from error
        tensors |= zip((name + suffix for suffix in SUFFIXES), parts, strict=True)
        packed.append(name)
    return tensors, METADATA, packed


def _unpack_shard(file: PackedFile, advance: Callable) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    tensors = {}
    for name in file.entries:
        tensors[name] = file.dense(name)
        advance(sum(part.nbytes for part in file.parts(name).values()))
    return tensors, {"format": "pt"}, file.packed_names


def _mark_packed(config: dict) -> None:
    if "quantization_config" in config:
        raise ValueError("config.json has a quantization_config: the checkpoint is packed or quantised already")
    config["quantization_config"] = {
        "quant_method": QUANT_METHOD,
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
    }


def _mark_plain(config: dict) -> None:
    mark = config.pop("quantization_config", None)
    if not isinstance(mark, dict) or mark.get("quant_method") != QUANT_METHOD:
        raise PackedFormatError(f"config.json: quantization_config is {mark!r}, expected that of a packed checkpoint")
    check_version("config.json", mark.get("format"), mark.get("format_version"))


def _rewrite(source, output, convert: Callable, mark: Callable, label: str | None) -> PackSummary:
    source = Path(source)
    files = weight_files(source)
    sharded = files != [source / WEIGHTS]
    weight_map, stored, packed, plain, sizes = {}, {}, [], [], [0, 0]
    total = sum(path.stat().st_size for path in files)
    with _appearing(output) as staging, progress_bar(total, label) as bar:
        for file in open_files(files):
            name = file.path.name
            stored[name] = {key for entry in file.entries for key in file.stored(entry)}
            tensors, metadata, names = convert(file, bar.update)
            packed += names
            plain += [entry for entry in file.entries if entry not in set(names)]
            save_file(tensors, staging / name, metadata)
            weight_map |= dict.fromkeys(tensors, name)
            sizes[0] += file.path.stat().st_size
            sizes[1] += (staging / name).stat().st_size
        if not packed:
            raise ValueError(
                f"{source}: no weight is packed, or has enough zeros to become smaller by packing (the fraction of"
                " zeros must exceed 1 / bits per value)"
            )
        if sharded:
            check_index(source / INDEX, stored)
            index = {"metadata": {"total_size": sizes[1]}, "weight_map": dict(sorted(weight_map.items()))}
            (staging / INDEX).write_text(json.dumps(index, indent=2) + "\n")
        if (source / MODEL_CONFIG).is_file():
            config = _json_object(source / MODEL_CONFIG)
            mark(config)
            (staging / MODEL_CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        for path in sorted(source.iterdir()):
            left_out = path.suffix == ".safetensors" or path.name == INDEX or is_private(path.name)
            if path.is_file() and not left_out and not (staging / path.name).exists():
                shutil.copy2(path, staging / path.name)
    return PackSummary(sizes[0], sizes[1], tuple(packed), tuple(plain))


@contextmanager
def _appearing(output: str | os.PathLike) -> Iterator[Path]:
    """A directory to write into, which gets its name `output` when the block ends well: a kill leaves nothing there."""
    _check_absent(output)
    with _beside(output) as staging:
        yield staging
        for path in staging.iterdir():
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
        staging.chmod(0o777 & ~_umask())
        staging.rename(output)  # fails if somebody else made a non-empty one meanwhile


def _check_absent(output: str | os.PathLike) -> None:
    if os.path.lexists(output):
        raise FileExistsError(f"{output} exists: nothing is overwritten, give a new directory or remove it first")


@contextmanager
def _beside(output: str | os.PathLike) -> Iterator[Path]:
    """A temporary directory on the file system of `output`, gone after the block unless it was renamed."""
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

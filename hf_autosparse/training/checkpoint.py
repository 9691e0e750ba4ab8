"""Native training state and whole-or-nothing checkpoints.

A checkpoint directory holds the deployable model (`model.safetensors`, what was evaluated: stock transformers loads it)
and, beside it, the native state: raw weights, thresholds and method buffers under the names of the live model. A
manifest, written after everything else it lists, tells a whole checkpoint from one whose writing was killed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

from safetensors.torch import load_model, save_model
from torch import nn

from ..serialization.files import INDEX, MANIFEST, NATIVE_STATE, TRAINER_STATE, WEIGHTS, checkpoint_step
from ..utils.io import StrPath, flush_to_disk, read_json_object, read_versioned_json, write_text, write_versioned_json

_MANIFEST_VERSION = 1
_ASIDE = ".old-"
_IS_WEIGHT = re.compile(r"(\.old-)?model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")


class IncompleteCheckpointError(ValueError):
    """A checkpoint that is not whole; the message says what is missing."""


def save_native_state(model: nn.Module, directory: StrPath) -> None:
    """Write the model's own state dict; tied tensors are stored once."""
    Path(directory).mkdir(parents=True, exist_ok=True)
    save_model(model, str(Path(directory) / NATIVE_STATE))


def load_native_state(model: nn.Module, directory: StrPath) -> None:
    """Load what `save_native_state` wrote into a model of the same architecture and sparse configuration, strictly.

    Raises:
        IncompleteCheckpointError: the directory has no native state (no AutoSparse trainer wrote it).
        ValueError: names or shapes differ from the model's.
    """
    path = Path(directory) / NATIVE_STATE
    if not path.is_file():
        raise IncompleteCheckpointError(
            f"{directory} has no {NATIVE_STATE}: it holds a finished model, not a training state. Load it with"
            " from_pretrained to fine-tune it, or resume from a checkpoint-* directory of an AutoSparse run"
        )
    try:
        load_model(model, str(path), strict=True)
    except RuntimeError as error:
        raise ValueError(
            f"{path} does not fit the model; was it trained with another sparse_config? {error}"
        ) from error


def invalidate(directory: StrPath) -> None:
    """Declare a directory not whole before it is written (again)."""
    for name in (MANIFEST, TRAINER_STATE):
        (Path(directory) / name).unlink(missing_ok=True)


def write_manifest(directory: StrPath) -> None:
    """List every file of the directory with its size, after forcing each to disk."""
    directory = Path(directory)
    sizes = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.name not in (MANIFEST, TRAINER_STATE):
            flush_to_disk(path)
            sizes[path.relative_to(directory).as_posix()] = path.stat().st_size
    write_versioned_json(directory / MANIFEST, _MANIFEST_VERSION, {"files": sizes}, flush=True)


def check_whole(directory: StrPath) -> None:
    """Raise IncompleteCheckpointError unless training can resume from this directory exactly.

    Trainer writes `trainer_state.json` last, after the manifest, and only then deletes older checkpoints: so whenever
    an older one is gone, this one is whole.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise IncompleteCheckpointError(f"checkpoint {directory} does not exist")
    if not (directory / MANIFEST).is_file():
        raise IncompleteCheckpointError(
            f"{directory} has no {MANIFEST}: its saving was interrupted, or it was written with save_only_model=True or"
            " by another trainer"
        )
    try:
        sizes = read_versioned_json(directory / MANIFEST, _MANIFEST_VERSION)["files"]
    except (ValueError, KeyError) as error:
        raise IncompleteCheckpointError(f"{directory / MANIFEST} is damaged: {error}") from error
    for name, size in sizes.items():
        path = directory / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            raise IncompleteCheckpointError(
                f"{path} has {found} bytes, its manifest says {size}: not a whole checkpoint"
            )
    try:
        read_json_object(directory / TRAINER_STATE)
    except (OSError, ValueError) as error:
        raise IncompleteCheckpointError(f"{directory / TRAINER_STATE} is missing or cut off: {error}") from error


def last_whole_checkpoint(run_directory: StrPath) -> tuple[Path | None, list[str]]:
    """The newest whole `checkpoint-*` of a run (None if there is none), and why each newer one was passed over."""
    found = [
        (step, path) for path in Path(run_directory).glob("checkpoint-*") if (step := checkpoint_step(path)) is not None
    ]
    passed_over = []
    for _, path in sorted(found, reverse=True):
        try:
            check_whole(path)
        except IncompleteCheckpointError as error:
            passed_over.append(str(error))
        else:
            return path, passed_over
    return None, passed_over


def is_checkpoint(directory: StrPath) -> bool:
    """Whether a directory is one of a run's `checkpoint-*`, by its name."""
    return checkpoint_step(directory) is not None


def staging_directory(directory: StrPath) -> Path:
    """A fresh directory inside `directory` to write a model into before `publish`."""
    staging = Path(directory) / ".saving"
    shutil.rmtree(staging, ignore_errors=True)  # left by a killed run
    staging.mkdir(parents=True)
    return staging


def publish(staging: Path, directory: StrPath) -> None:
    """Move a finished model from `staging` into `directory`. A kill at any moment leaves the old or the new weights.

    One step decides: `model.safetensors` is replaced (it takes precedence over shards), or removed once all shards are
    there, or the index of the shards is replaced. All other files come first, the removal of old weights last.
    """
    directory = Path(directory)
    names = sorted(p.name for p in staging.iterdir())
    weights = [name for name in names if _IS_WEIGHT.fullmatch(name)]
    if INDEX in weights:
        _set_shards_aside(directory, set(weights))
    for name in sorted(names, key=lambda n: (n in weights, n == INDEX)):
        if (staging / name).is_file():
            flush_to_disk(staging / name)
        target = directory / name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(staging / name, target)
    old = [p for p in directory.iterdir() if _IS_WEIGHT.fullmatch(p.name) and p.name not in weights]
    for path in sorted(old, key=lambda p: p.name != WEIGHTS):
        path.unlink()
    staging.rmdir()


def _set_shards_aside(directory: Path, taken: set[str]) -> None:
    """Give the shards of the model that is there other names, in its index too, where new shards will take theirs."""
    index = directory / INDEX
    if not index.is_file():
        return
    try:
        content = json.loads(index.read_text())
        shards = {key: str(name) for key, name in content["weight_map"].items()}
    except (ValueError, TypeError, KeyError, AttributeError):  # damaged: there is no model to preserve
        return
    if not all((directory / name).is_file() for name in shards.values()):
        return
    for name in taken.intersection(shards.values()):
        aside = directory / (_ASIDE + name)
        aside.unlink(missing_ok=True)
        try:
            os.link(directory / name, aside)
        except OSError:  # a file system without hard links
            shutil.copyfile(directory / name, aside)
    content["weight_map"] = {key: _ASIDE + name if name in taken else name for key, name in shards.items()}
    write_text(index, json.dumps(content), flush=True)

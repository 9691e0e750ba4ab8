"""Find a saved model by its path, or by its repository on the Hub, of which only what is needed is downloaded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..utils.io import StrPath
from .bitmask_format import PackedFormatError
from .files import INDEX, MODEL_CONFIG, PRIVATE, TRAJECTORY, WEIGHTS
from .pack import shard_names

# What packing a downloaded model has no use for: subdirectories, private files, other formats of the weights.
_NOT_DOWNLOADED = ("*/*", *PRIVATE, "*.h5", "*.msgpack", "*.onnx", "*.gguf", "*.ot")


def locate(path_or_repo: StrPath, everything: bool = False) -> Path:
    """The directory of a saved model or the .safetensors file, if it is there; else a repository's copy in the cache.

    Args:
        everything: download all that belongs to the model (configuration, tokenizer, ...), not the weights alone.

    Raises:
        FileNotFoundError: neither a path nor a repository, or a repository without safetensors weights.
        PermissionError: the repository is gated.
        ConnectionError: the Hub cannot be reached, or the download broke.
        PackedFormatError: the path is another kind of file, or the repository's index is damaged.
    """
    path = Path(path_or_repo)
    if path.is_dir():
        return path
    if path.is_file():
        if everything or path.suffix != ".safetensors":
            file = "" if everything else "a .safetensors file or "
            raise PackedFormatError(f"{path} is a file, expected {file}the directory of a saved model")
        return path
    name = os.fspath(path_or_repo)
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith(".safetensors"):
        raise FileNotFoundError(f"{name} does not exist")
    return _download_all(name) if everything else _download_weights(name)


def _download_all(repo: str) -> Path:
    return _download(repo, ignore_patterns=list(_NOT_DOWNLOADED))


def _download_weights(repo: str) -> Path:
    directory = _download(repo, allow_patterns=[MODEL_CONFIG, INDEX, TRAJECTORY])
    index = directory / INDEX
    names = shard_names(index) if index.is_file() else [WEIGHTS]
    directory = _download(repo, revision=directory.name, allow_patterns=names)
    if not index.is_file() and not (directory / WEIGHTS).is_file():
        raise FileNotFoundError(f"the repository {repo} holds neither {WEIGHTS} nor {INDEX}")
    return directory


def _download(repo: str, **which: Any) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
    )

    transfer_errors: Any = (
        HfHubHTTPError.__bases__
    )  # the HTTP library's own (timeouts, dropped connections), and OSError
    try:
        return Path(snapshot_download(repo, **which))
    except HFValidationError as error:
        raise FileNotFoundError(f"{repo} does not exist, and is no name of a Hub repository") from error
    except GatedRepoError as error:
        raise PermissionError(
            f"the Hub repository {repo} is gated: ask for access on its page, then log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{repo} does not exist, neither here nor on the Hub; if it is a private repository, log in with `hf auth"
            " login` or set HF_TOKEN"
        ) from error
    except transfer_errors as error:
        raise ConnectionError(
            f"{repo} does not exist here; as a Hub repository it is not in the cache, and could not be downloaded:"
            f" {_first_line(error.__cause__ or error)}"
        ) from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)

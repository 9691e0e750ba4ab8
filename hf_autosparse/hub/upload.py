"""One upload to the Hub: which files, in one commit, and what a refusal means.

`HfApi.upload_folder` is not used: with hf_xet it makes several commits, so that an upload that breaks, or a download in
between, would mix the files of two models. Here the weights of the old and of the new model are never seen together.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from ..serialization.files import MODEL_CONFIG, PLOTS, is_private, is_weight_file
from ..serialization.pack import QUANT_METHOD, pack
from .card import package_version


def hub_api() -> HfApi:
    """The Hub at `HF_ENDPOINT`, told which library speaks. Its `run_as_future` runs one job after the other."""
    return HfApi(library_name="hf_autosparse", library_version=package_version())


def commit(
    api: HfApi,
    repo_id: str,
    files: Mapping[str, Path | bytes],
    message: str,
    *,
    folder: str = "",
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> CommitInfo:
    """Put `files` (path in `folder` -> content) into a repository as one commit.

    Old weights under other names (another number of shards) go with the same commit: they would be loaded instead of
    the new ones. In a `folder` everything old goes.
    """
    if revision is not None and not create_pr and not revision.startswith("refs/"):
        api.create_branch(repo_id, branch=revision, token=token, exist_ok=True)
    prefix = f"{folder}/" if folder else ""
    present = api.list_repo_files(repo_id, revision=None if create_pr else revision, token=token)
    old = [path for path in present if path.startswith(prefix) and path.removeprefix(prefix) not in files]
    operations = [CommitOperationDelete(path) for path in old if folder or is_weight_file(path)]
    operations += [
        CommitOperationAdd(prefix + name, content if isinstance(content, bytes) else str(content))
        for name, content in files.items()
    ]
    return api.create_commit(
        repo_id, operations, commit_message=message, token=token, revision=revision, create_pr=create_pr
    )


@contextmanager
def explained_refusal(repo_id: str) -> Iterator[None]:
    """Add what to do to the Hub's refusals. It also says "not found" of a private repository that one may not see."""
    try:
        yield
    except HfHubHTTPError as error:
        refused = error.response is not None and error.response.status_code in (401, 403)
        if refused or isinstance(error, RepositoryNotFoundError):
            error.append_to_message(
                f"\n\nPushing to {repo_id!r} needs a token with write access to it: log in with `hf auth login`, set"
                " HF_TOKEN, or pass token=... (trainers: TrainingArguments(hub_token=...))"
            )
        raise


# ---- What goes up ----


def public_files(directory: str | os.PathLike) -> dict[str, Path]:
    """Path relative to the directory -> file, for everything that belongs on the Hub beside a model.

    Left out are checkpoints, hidden and underscored names (staging folders), training state, drafts and pickles.
    """
    directory = Path(directory)
    files = {}
    for path in sorted(directory.rglob("*")):
        parts = path.relative_to(directory).parts
        if path.is_file() and not parts[0].startswith(("_", "checkpoint-")) and not any(map(is_private, parts)):
            files["/".join(parts)] = path
    return files


def checkpoint_files(directory: str | os.PathLike) -> dict[str, Path]:
    """Everything in a checkpoint, for resuming elsewhere; only staging folders and drafts are left out."""
    directory = Path(directory)
    found = {path.relative_to(directory): path for path in sorted(directory.rglob("*")) if path.is_file()}
    return {
        name.as_posix(): path
        for name, path in found.items()
        if not any(part.startswith(".") for part in name.parts) and path.suffix != ".tmp"
    }


def without_weights(files: Mapping[str, Path]) -> dict[str, Path]:
    return {name: path for name, path in files.items() if not is_weight_file(name)}


def packed_files(
    directory: str | os.PathLike, files: Mapping[str, Path], output: Path
) -> tuple[dict[str, Path], tuple[int, int]]:
    """`files` with packed weights, written to `output`, instead of the plain ones of `directory`.

    Also gives the bytes of the weight files before and after.

    Raises:
        ValueError: no weight has enough zeros to become smaller.
    """
    summary = pack(directory, output)
    written = {path.name: path for path in output.iterdir() if is_weight_file(path.name) or path.name == MODEL_CONFIG}
    return without_weights(files) | written, (summary.source_bytes, summary.output_bytes)


# ---- What a saved model is ----


def figures(directory: str | os.PathLike) -> tuple[str, ...]:
    """The pictures in `plots/`, relative to the directory."""
    return tuple(f"{PLOTS}/{path.name}" for path in sorted(Path(directory).glob(f"{PLOTS}/*.png")))


def model_class_of(directory: str | os.PathLike) -> str | None:
    """The transformers class that a saved model names in its config.json, or None."""
    return (_config_of(directory).get("architectures") or [None])[0]


def is_packed(directory: str | os.PathLike) -> bool:
    mark = _config_of(directory).get("quantization_config")
    return isinstance(mark, dict) and mark.get("quant_method") == QUANT_METHOD


def _config_of(directory: str | os.PathLike) -> dict[str, Any]:
    path = Path(directory) / MODEL_CONFIG
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is no JSON object: {error}") from error

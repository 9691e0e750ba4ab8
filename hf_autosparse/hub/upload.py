"""One upload to the Hub: which files, in one commit, and what a refusal means.

`HfApi.upload_folder` is not used: with hf_xet it makes several commits, so that an upload that breaks, or a download in
between, would mix the files of two models. Here the weights of the old and of the new model are never seen together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from ..serialization.files import CARD, MODEL_CONFIG, QUANT_METHOD, is_private, is_weight_file
from ..serialization.pack import pack
from ..utils.io import StrPath, read_json_object
from ..utils.version import __version__
from .card import describe_loading
from .card_text import Loading


def hub_api() -> HfApi:
    """The Hub at `HF_ENDPOINT`, told which library speaks. Its `run_as_future` runs one job after the other."""
    return HfApi(library_name="hf_autosparse", library_version=__version__)


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
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationDelete(path) for path in old if folder or is_weight_file(path)
    ]
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


def public_files(directory: StrPath) -> dict[str, Path]:
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


def checkpoint_files(directory: StrPath) -> dict[str, Path]:
    """Everything in a checkpoint, for resuming elsewhere; only staging folders and drafts are left out."""
    directory = Path(directory)
    found = {path.relative_to(directory): path for path in sorted(directory.rglob("*")) if path.is_file()}
    return {
        name.as_posix(): path
        for name, path in found.items()
        if not any(part.startswith(".") for part in name.parts) and path.suffix != ".tmp"
    }


def without_weights(files: Mapping[str, Path]) -> dict[str, Path]:
    """The files that hold no weights of the model."""
    return {name: path for name, path in files.items() if not is_weight_file(name)}


@dataclass(frozen=True)
class Payload:
    """What one commit brings: path in the repository -> file or content, and what a card says of loading it."""

    files: dict[str, Path | bytes]
    model_class: str | None
    packed: bool
    sizes: tuple[int, int] | None

    def loading(self, repo_id: str) -> Loading:
        """How the model is loaded once it is there."""
        return Loading(repo_id, self.model_class, self.packed, self.sizes)

    def with_card(self, card: ModelCard, repo_id: str) -> dict[str, Path | bytes]:
        """The files with this card, which says how the model is loaded."""
        return self.files | {CARD: str(describe_loading(card, self.loading(repo_id))).encode()}


def payload(directory: StrPath, files: Mapping[str, Path], scratch: Path, *, packed: bool) -> Payload:
    """What goes up of a saved model: its files as they are, or with packed weights, which are written to `scratch`.

    Raises:
        ValueError: no weight has enough zeros to become smaller; config.json is not a JSON object.
    """
    model_class = model_class_of(directory)
    if not packed or is_packed(directory):
        return Payload(dict(files), model_class, packed, None)
    summary = pack(directory, scratch)
    written = {path.name: path for path in scratch.iterdir() if is_weight_file(path.name) or path.name == MODEL_CONFIG}
    sizes = summary.source_bytes, summary.output_bytes
    return Payload({**without_weights(files), **written}, model_class, packed, sizes)


# ---- What a saved model is ----


def model_class_of(directory: StrPath) -> str | None:
    """The transformers class that a saved model names in its config.json, or None."""
    classes = _config_of(directory).get("architectures")
    return str(classes[0]) if classes else None


def is_packed(directory: StrPath) -> bool:
    mark = _config_of(directory).get("quantization_config")
    return isinstance(mark, dict) and mark.get("quant_method") == QUANT_METHOD


def _config_of(directory: StrPath) -> dict[str, Any]:
    path = Path(directory) / MODEL_CONFIG
    return read_json_object(path) if path.is_file() else {}

"""`push_to_hub`: a sparse model onto the Hub, plain or packed, with a card, as one commit.

`HfApi.upload_folder` is not used: with hf_xet it makes several commits, so that an upload that breaks, or a download in
between, would mix the files of two models. Here the weights of the old and of the new model are never seen together.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from torch import nn

from . import model_card
from .config import CONFIG_NAME, AutoSparseConfig
from .model_card import Evaluation, Loading, Measured, package_version
from .packed import PackSummary, is_packable, pack, save_plain, weight_files
from .packed_format import PackedFile
from .report import LayerRow, SparsityReport, sparsity_report
from .sparsify import record_of

CARD = "README.md"
# What a run needs and a user of its model does not. Pickles are never published; training_args.bin is one.
PRIVATE = (
    *("*.bin", "*.pt", "*.pth", "*.pkl", "*.tmp"),
    *("autosparse_state*", "autosparse_manifest.json", "autosparse_loss_*", "trainer_state.json"),
)
_is_weight = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?").fullmatch


def push_to_hub(
    source: nn.Module | str | os.PathLike,
    repo_id: str,
    *,
    packed: bool = False,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str = "Upload a sparse model",
    revision: str | None = None,
    create_pr: bool = False,
    processing_class: Any = None,
    metrics: Mapping[str, float] | None = None,
    dense_metrics: Mapping[str, float] | None = None,
) -> CommitInfo:
    """Upload a sparse model with a model card, in one commit: the repository holds the old model or the new one.

    An upload that broke is repeated by calling this again; weights that arrived before are not sent again.

    Args:
        source: a model (sparse, finalized, or any with zeros), or the directory of a saved one. The card that a
            directory has is kept; what is missing in it is added.
        repo_id: "user/name"; made if it does not exist.
        packed: upload in the packed format. By default the weights are plain ones with zeros, which load everywhere;
            packed ones are smaller and load only after `import hf_autosparse`, as the card then says.
        private: whether a repository that is made here is private; None for the account's default.
        token: None for the saved one or `HF_TOKEN`.
        revision: branch to commit to, made if it does not exist; None for main.
        create_pr: open a pull request instead of committing to the branch.
        processing_class: tokenizer or processor to upload with a model.
        metrics: task metrics of this model for the card, such as `{"test_bleu": 37.2}`.
        dense_metrics: the same metrics of its dense twin, for a side-by-side table.

    Raises:
        FileNotFoundError: the directory holds no saved model.
        ValueError: a directory of packed weights without `packed=True`; nothing to pack; a metric is no finite number,
            or is given for the dense twin alone.
        huggingface_hub.errors.HfHubHTTPError: the Hub refused; for want of rights, the message says what to do.
    """
    evaluation = Evaluation(dict(metrics or {}))
    with tempfile.TemporaryDirectory(prefix="autosparse-") as scratch:
        if isinstance(source, nn.Module):
            directory = Path(scratch) / "plain"
            _save(source, directory, processing_class)
            report, parameters = sparsity_report(source), parameter_count(source)
        else:
            directory = _saved_model(source, packed)
            report, parameters = directory_report(directory)
        config = AutoSparseConfig.from_pretrained(directory) if (directory / CONFIG_NAME).is_file() else None
        measured = Measured(report, parameters, config, evaluation, dense_metrics or {}, figures=figures(directory))
        with explained_refusal(repo_id):
            api = hub_api()
            repo_id = api.create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
            files: dict[str, Path | bytes] = dict(public_files(directory))
            loading = Loading(repo_id, model_class_of(directory), is_packed(directory))
            if CARD in files:
                card = model_card.extend(ModelCard.load(files[CARD]), measured, loading, replace=False)
            else:
                card = model_card.new_card(measured, loading)
            files[CARD] = str(card).encode()
            if packed and not loading.packed:
                files = packed_files(directory, files, Path(scratch) / "packed", repo_id)
            return commit(api, repo_id, files, commit_message, token=token, revision=revision, create_pr=create_pr)


# ---- Commits ----


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
    operations = [CommitOperationDelete(path) for path in old if folder or _is_weight(path)]
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
        if path.is_file() and not parts[0].startswith(("_", "checkpoint-")) and not any(map(_is_private, parts)):
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


def _is_private(name: str) -> bool:
    return name.startswith(".") or any(fnmatch.fnmatchcase(name, pattern) for pattern in PRIVATE)


def without_weights(files: Mapping[str, Path]) -> dict[str, Path]:
    return {name: path for name, path in files.items() if not _is_weight(name)}


def packed_files(
    directory: Path, files: Mapping[str, Path | bytes], output: Path, repo_id: str
) -> dict[str, Path | bytes]:
    """`files` with packed weights, written to `output`, instead of the plain ones of `directory`, and a card for them."""
    summary: PackSummary = pack(directory, output)
    replaced = without_weights(files) | {p.name: p for p in output.iterdir() if _is_weight(p.name)}
    if (output / "config.json").is_file():
        replaced["config.json"] = output / "config.json"
    content = files[CARD]
    card = ModelCard(content.decode() if isinstance(content, bytes) else content.read_text(encoding="utf-8"))
    sizes = (summary.source_bytes, summary.output_bytes)
    loading = Loading(repo_id, model_class_of(directory), packed=True, sizes=sizes)
    replaced[CARD] = str(model_card.describe_loading(card, loading)).encode()
    return replaced


# ---- What the card states ----


def parameter_count(model: nn.Module) -> int:
    """Parameters of the model as it is deployed: thresholds and the like do not count, tied weights count once."""
    return sum(p.numel() for name, p in model.named_parameters() if ".sparsifier." not in name)


def figures(directory: str | os.PathLike) -> tuple[str, ...]:
    """The pictures in `plots/`, relative to the directory."""
    return tuple(f"plots/{path.name}" for path in sorted(Path(directory).glob("plots/*.png")))


def model_class_of(directory: str | os.PathLike) -> str | None:
    """The transformers class that a saved model names in its config.json, or None."""
    return (_config_of(directory).get("architectures") or [None])[0]


def is_packed(directory: str | os.PathLike) -> bool:
    mark = _config_of(directory).get("quantization_config")
    return isinstance(mark, dict) and mark.get("quant_method") == "autosparse"


def directory_report(directory: str | os.PathLike) -> tuple[SparsityReport, int]:
    """The weights of a saved model that have enough zeros to be worth packing, and the number of all parameters.

    One tensor is in memory at a time.
    """
    rows, parameters = [], 0
    for path in weight_files(directory):
        with PackedFile(path) as file:
            for name in file.entries:
                weight = file.dense(name)
                parameters += weight.numel()
                if is_packable(name, weight):
                    sparsity = 1 - int(weight.count_nonzero()) / weight.numel()
                    rows.append(LayerRow(name.removesuffix(".weight"), tuple(weight.shape), sparsity, None))
    return SparsityReport(rows, {}), parameters


def _config_of(directory: str | os.PathLike) -> dict[str, Any]:
    path = Path(directory) / "config.json"
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is no JSON object: {error}") from error


def _saved_model(directory: str | os.PathLike, packed: bool) -> Path:
    directory = Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"no directory {directory}: push_to_hub takes a model or the directory of a saved one")
    weight_files(directory)  # raises where there are none
    if is_packed(directory) and not packed:
        raise ValueError(
            f"{directory} holds packed weights, which load only with this package: pass packed=True, or turn them into"
            " plain ones first with hf_autosparse.unpack"
        )
    return directory


def _save(model: nn.Module, directory: Path, processing_class: Any) -> None:
    directory.mkdir()
    save_plain(model, directory)
    record = record_of(model)
    if record is not None:
        record.config.save_pretrained(directory)
    if processing_class is not None:
        processing_class.save_pretrained(directory)

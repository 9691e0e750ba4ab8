"""`push_to_hub`: a sparse model, or the directory of a saved one, onto the Hub with a card, plain or packed."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, ModelCard
from torch import nn

from ..layers.sparsify import record_of
from ..serialization.files import CARD
from ..serialization.pack import save_plain, weight_files
from ..utils.io import StrPath
from . import upload
from .card import extend, new_card
from .measured import Evaluation, measure


def push_to_hub(
    source: nn.Module | StrPath,
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
            or is given for the dense twin alone; `processing_class` with a directory.
        huggingface_hub.errors.HfHubHTTPError: the Hub refused; for want of rights, the message says what to do.
    """
    if processing_class is not None and not isinstance(source, nn.Module):
        raise ValueError("processing_class goes with a model; with a directory, save it there first (save_pretrained)")
    with tempfile.TemporaryDirectory(prefix="autosparse-") as scratch:
        if isinstance(source, nn.Module):
            directory = _save(source, Path(scratch) / "plain", processing_class)
        else:
            directory = _saved_model(source, packed)
        measured = measure(source, evaluation=Evaluation(dict(metrics or {})), dense_metrics=dense_metrics)
        payload = upload.payload(directory, upload.public_files(directory), Path(scratch) / "packed", packed=packed)
        with upload.explained_refusal(repo_id):
            api = upload.hub_api()
            repo_id = api.create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
            loading = payload.loading(repo_id)
            if CARD in payload.files:
                card = extend(ModelCard.load(directory / CARD), measured, loading, replace=False)
            else:
                card = new_card(measured, loading)
            return upload.commit(
                api,
                repo_id,
                payload.with_card(card, repo_id),
                commit_message,
                token=token,
                revision=revision,
                create_pr=create_pr,
            )


def _saved_model(directory: StrPath, packed: bool) -> Path:
    """The directory, if it holds a model that may go up in this form."""
    directory = Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"no directory {directory}: push_to_hub takes a model or the directory of a saved one")
    weight_files(directory)  # raises where there are none
    if upload.is_packed(directory) and not packed:
        raise ValueError(
            f"{directory} holds packed weights, which load only with this package: pass packed=True, or turn them into"
            " plain ones first with hf_autosparse.unpack"
        )
    return directory


def _save(model: nn.Module, directory: Path, processing_class: Any) -> Path:
    """Write what is uploaded of a model into a new directory."""
    directory.mkdir()
    save_plain(model, directory)
    record = record_of(model)
    if record is not None:
        record.config.save_pretrained(directory)
    if processing_class is not None:
        processing_class.save_pretrained(directory)
    return directory

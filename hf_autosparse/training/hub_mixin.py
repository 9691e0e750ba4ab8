"""What the trainer sends to the Hub: the model with its card, and, during training, checkpoints in the background."""

from __future__ import annotations

import copy
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitInfo, ModelCard
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils.hub import PushInProgress

from ..hub import card as model_card
from ..hub import upload
from ..hub.card import Evaluation, Loading, Measured
from ..reports.sparsity import sparsity_report
from ..serialization.files import CARD

logger = logging.getLogger(__name__)

_SNAPSHOT = ".pushing-"
# What Trainer writes of a model that was not loaded from anywhere.
_FROM_NOTHING = "This model is a fine-tuned version of [](https://huggingface.co/) on"


class HubMixin:
    """Trainer's methods for the Hub, for models whose weights must arrive whole. A part of `AutoSparseMixin`."""

    _hub = None  # set once there is a repository

    # ---- The card ----

    def create_model_card(
        self,
        *args: Any,
        metrics: Mapping[str, float] | None = None,
        dense_metrics: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write `README.md` into `output_dir`: Trainer's card and what this run measured.

        Args:
            *args, **kwargs: those of `Trainer.create_model_card` (language, license, tags, model_name, dataset, ...).
            metrics: task metrics measured outside of `evaluate`, such as `{"test_bleu": 37.2}`.
            dense_metrics: the metrics of the dense twin, under the same names (`{"eval_loss": 1.9}`): the card then
                shows both with the relative change.

        Raises:
            ValueError: a dense metric is no finite number, or was not measured on this model.
        """
        if not self.is_world_process_zero():
            return
        evaluation = self._last_evaluation()
        evaluation = Evaluation(evaluation.metrics | dict(metrics or {}), evaluation.moment)
        measured = self._measured(evaluation, dense_metrics or {})
        super().create_model_card(*args, **kwargs)
        path = Path(self.args.output_dir) / CARD
        card = ModelCard.load(path)
        model = self.deployed_model()
        card.text = card.text.replace(_FROM_NOTHING, "This model was trained from scratch on")
        card.data.tags = [*(card.data.tags or []), *(getattr(model, "model_tags", None) or [])]
        name = self.hub_model_id or Path(self.args.output_dir).name
        tasks = kwargs.get("tasks")
        card = model_card.extend(
            card,
            measured,
            Loading(name, type(model).__name__ if hasattr(model, "save_pretrained") else None),
            task=tasks if isinstance(tasks, str) or not tasks else tasks[0],
        )
        draft = path.with_suffix(f".{os.getpid()}.tmp")
        card.save(draft)
        os.replace(draft, path)

    def _tagged(self, model: torch.nn.Module) -> torch.nn.Module:
        """A model of transformers carries its tags to the Hub whoever pushes it."""
        if hasattr(model, "add_model_tags"):
            model.add_model_tags(model_card.tags(self.sparse_config))
        return model

    def deployed_model(self) -> torch.nn.Module:
        """The model inside what DDP or torch.compile put around it."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    def _last_evaluation(self) -> Evaluation:
        best_loaded = self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None
        finished = any("train_runtime" in entry for entry in self.state.log_history)
        best_step = self.state.best_global_step if best_loaded and finished else None
        return model_card.last_evaluation(self.state.log_history, self.state.global_step, best_step)

    def _measured(self, evaluation: Evaluation, dense_metrics: Mapping[str, float]) -> Measured:
        model = self.deployed_model()
        report = sparsity_report(model)
        return Measured(
            report,
            model_card.parameter_count(model),
            self.sparse_config,
            evaluation,
            dense_metrics,
            model_card.theoretical_flops(self.trajectory, report),
            upload.figures(self.args.output_dir),
        )

    # ---- Pushing ----

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository if it does not exist; `hub_model_id` is its full name afterwards."""
        if not self.is_world_process_zero():
            return
        name = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
        token = self.args.hub_token if token is None else token
        private = self.args.hub_private_repo if private is None else private
        self._hub = upload.hub_api()
        with upload.explained_refusal(name):
            self.hub_model_id = self._hub.create_repo(name, token=token, private=private, exist_ok=True).repo_id
        self.push_in_progress = None

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        *,
        packed: bool = False,
        **kwargs: Any,
    ) -> CommitInfo | Future | None:
        """Save the model, write its card and upload both with what else lies in `output_dir`, as one commit.

        Args:
            packed: upload the weights in the packed format; what is saved in `output_dir` stays plain.
            **kwargs: those of `create_model_card`, `dense_metrics` among them.
            The others are those of `Trainer.push_to_hub`.

        Returns:
            The commit, or its Future if not `blocking`; None in all processes but the main one.

        Raises:
            huggingface_hub.errors.HfHubHTTPError: the Hub refused. What is saved stays; call this again.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = self.args.hub_token if token is None else token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**({"model_name": self.hub_model_id.split("/")[-1]} | kwargs))
        self._finish_current_push()
        self._clear_left_overs()
        directory = Path(self.args.output_dir)
        push = {
            "message": commit_message or "End of training",
            "token": token,
            "revision": revision or self.args.hub_revision,
        }
        if blocking:
            return self._send(directory, upload.public_files(directory), packed=packed, **push)
        snapshot = self._snapshot({"model": upload.public_files(directory)})
        return self._in_background(snapshot, [{"packed": packed, **push}])

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Trainer calls this at each save. The upload runs while training goes on, from a snapshot of the files."""
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        if self.push_in_progress is not None and not self.push_in_progress.is_done():
            if not self.args.hub_always_push:
                return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.args.save_strategy == SaveStrategy.STEPS:
            message = f"Training in progress, step {self.state.global_step}"
        else:
            message = f"Training in progress, epoch {int(self.state.epoch)}"
        push = {"message": message, "token": self.args.hub_token, "revision": self.args.hub_revision}
        self._clear_left_overs()
        around = upload.without_weights(upload.public_files(self.args.output_dir))
        folders = {"model": around | upload.public_files(checkpoint_folder)}
        uploads = [push]
        if self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            last = self.args.hub_strategy == HubStrategy.CHECKPOINT
            name = "last-checkpoint" if last else Path(checkpoint_folder).name
            folders[name] = upload.checkpoint_files(checkpoint_folder)
            uploads.append(push | {"message": f"{message}, checkpoint", "folder": name})
        self._in_background(self._snapshot(folders), uploads)

    def _finish_current_push(self) -> None:
        super()._finish_current_push()
        if getattr(self, "push_in_progress", None) is not None:
            for job in self.push_in_progress.jobs:
                self._report_failure(job, logging.ERROR, "call trainer.push_to_hub() to repeat it")
            self.push_in_progress = None

    # ---- Uploads ----

    def _send(
        self,
        directory: Path,
        files: dict[str, Path],
        *,
        message: str,
        token: str | None,
        revision: str | None,
        folder: str = "",
        packed: bool = False,
    ) -> CommitInfo:
        settings = {"token": token, "revision": revision}
        with tempfile.TemporaryDirectory(prefix="autosparse-") as scratch, upload.explained_refusal(self.hub_model_id):
            if packed:
                files, sizes = upload.packed_files(directory, files, Path(scratch) / "packed")
                loading = Loading(self.hub_model_id, upload.model_class_of(directory), packed, sizes)
                card = model_card.describe_loading(ModelCard.load(files[CARD]), loading)
                files[CARD] = str(card).encode()
            return upload.commit(self._hub, self.hub_model_id, files, message, folder=folder, **settings)

    def _snapshot(self, folders: dict[str, dict[str, Path]]) -> Path:
        """Freeze the files of an upload in the background: training goes on, and deletes older checkpoints.

        Weights and states are linked, since they are never written in place; the rest (logs grow) is copied.
        """
        snapshot = Path(tempfile.mkdtemp(prefix=_SNAPSHOT, dir=self.args.output_dir))
        for folder, files in folders.items():
            for name, source in files.items():
                target = snapshot / folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                if source.suffix in (".safetensors", ".pt", ".pth", ".bin"):
                    _link_or_copy(source, target)
                else:
                    shutil.copy2(source, target)
        return snapshot

    def _clear_left_overs(self) -> None:
        """Snapshots of a run that was killed."""
        if self.push_in_progress is None:
            for snapshot in Path(self.args.output_dir).glob(_SNAPSHOT + "*"):
                shutil.rmtree(snapshot)

    def _in_background(self, snapshot: Path, uploads: list[dict[str, Any]]) -> Future:
        """Upload the snapshot's folders one after the other, then remove it."""

        def job() -> CommitInfo:
            try:
                for settings in uploads:
                    directory = snapshot / settings.get("folder", "model")
                    commit = self._send(directory, upload.checkpoint_files(directory), **settings)
                return commit
            finally:
                shutil.rmtree(snapshot)

        future = self._hub.run_as_future(job)
        if self.push_in_progress is None or self.push_in_progress.is_done():
            for old in self.push_in_progress.jobs if self.push_in_progress is not None else []:
                self._report_failure(old, logging.WARNING, "this save is pushed instead")
            self.push_in_progress = PushInProgress([future])
        else:
            self.push_in_progress.jobs.append(future)
        return future

    def _report_failure(self, job: Future, level: int, remedy: str) -> None:
        """Training does not stop for the network; what could not be uploaded is said, and is on disk."""
        if job.done() and (error := job.exception()) is not None:
            message = "a push to %s failed, the Hub keeps what it had; %s: %s"
            logger.log(level, message, self.hub_model_id, remedy, error)


def without_token(args: Any) -> Any:
    """Training arguments as they may be written to a file that is uploaded: `hub_token` is a secret."""
    args = copy.copy(args)
    args.hub_token = None
    return args


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)

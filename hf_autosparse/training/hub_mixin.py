"""What the trainer sends to the Hub: the model with its card, and, during training, checkpoints in the background."""

from __future__ import annotations

import copy
import functools
import logging
import tempfile
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import CommitInfo, HfApi, ModelCard
from transformers.trainer_utils import HubStrategy, SaveStrategy

from ..hub import upload
from ..hub.card import extend, tags
from ..hub.card_text import TRAINED_FROM_SCRATCH, TRAINERS_FINE_TUNED_FROM_NOTHING, Loading
from ..hub.measured import Evaluation, figures_in, last_evaluation, measure
from ..methods import SparseConfig
from ..serialization.files import CARD
from ..utils.io import replacing
from ._trainer_compat import TrainerBase, push_in_progress, save_model_without_pushing
from .background_push import remove_snapshots, report_failure, sending_job, take_snapshot

if TYPE_CHECKING:
    from ..reports.trajectory import Trajectory


class HubMixin(TrainerBase):
    """Trainer's methods for the Hub, for models whose weights must arrive whole. A part of `AutoSparseMixin`."""

    _hub: HfApi | None = None  # set once there is a repository
    push_in_progress: Any = None  # Trainer's name: what it waits for at the end of training

    if TYPE_CHECKING:

        @property
        def sparse_config(self) -> SparseConfig: ...

        @property
        def trajectory(self) -> Trajectory | None: ...

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
        model, run = self.deployed_model(), self._run()
        evaluation = self._last_evaluation(metrics or {})
        measured = measure(
            model,
            trajectory=self.trajectory,
            figures=figures_in(run),
            evaluation=evaluation,
            dense_metrics=dense_metrics,
        )
        super().create_model_card(*args, **kwargs)
        card = ModelCard.load(run / CARD)
        card.text = card.text.replace(TRAINERS_FINE_TUNED_FROM_NOTHING, TRAINED_FROM_SCRATCH)
        card.data.tags = [*(card.data.get("tags") or []), *(getattr(model, "model_tags", None) or [])]
        model_class = type(model).__name__ if hasattr(model, "save_pretrained") else None
        tasks = kwargs.get("tasks")
        card = extend(
            card,
            measured,
            Loading(self.hub_model_id or run.name, model_class),
            task=tasks if isinstance(tasks, str) or not tasks else tasks[0],
        )
        with replacing(run / CARD) as draft:
            card.save(draft)

    def _tagged(self, model: torch.nn.Module) -> torch.nn.Module:
        """Add tags to a model of transformers: it carries them to the Hub, also when another tool pushes it."""
        add_tags = getattr(model, "add_model_tags", None)
        if add_tags is not None:
            add_tags(tags(self.sparse_config))
        return model

    def deployed_model(self) -> torch.nn.Module:
        """The model inside what DDP or torch.compile put around it."""
        model: torch.nn.Module = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return model

    def _run(self) -> Path:
        return Path(self.args.output_dir or ".")

    def _last_evaluation(self, more: Mapping[str, float]) -> Evaluation:
        best_loaded = self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None
        finished = any("train_runtime" in entry for entry in self.state.log_history)
        best_step = self.state.best_global_step if best_loaded and finished else None
        last = last_evaluation(self.state.log_history, self.state.global_step, best_step)
        return replace(last, metrics=last.metrics | dict(more))

    # ---- Pushing ----

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository if it does not exist; `hub_model_id` is its full name afterwards."""
        if not self.is_world_process_zero():
            return
        name = self.args.hub_model_id or self._run().absolute().name
        token = self.args.hub_token if token is None else token
        private = self.args.hub_private_repo if private is None else private
        self._hub = upload.hub_api()
        with upload.explained_refusal(name):
            self.hub_model_id = self._hub.create_repo(name, token=token, private=private, exist_ok=True).repo_id
        self.push_in_progress = None

    def push_to_hub(  # type: ignore[override]  # Trainer's returns a Future or None too, unlike its annotation
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        *,
        packed: bool = False,
        **kwargs: Any,
    ) -> CommitInfo | Future[CommitInfo] | None:
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
        save_model_without_pushing(self)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**({"model_name": self._repo_id().split("/")[-1]} | kwargs))
        self._finish_current_push()
        self._remove_left_overs()
        run = self._run()
        send = functools.partial(
            self._send,
            message=commit_message or "End of training",
            token=token,
            revision=revision or self.args.hub_revision,
            packed=packed,
        )
        files = upload.public_files(run)
        if blocking:
            return send(run, files)
        snapshot = take_snapshot(run, {"model": files})
        return self._in_background(snapshot, {"model": send})

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
        send = functools.partial(self._send, token=self.args.hub_token, revision=self.args.hub_revision)
        self._remove_left_overs()
        around = upload.without_weights(upload.public_files(self._run()))
        folders = {"model": around | upload.public_files(checkpoint_folder)}
        sends = {"model": functools.partial(send, message=message)}
        if self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            last = self.args.hub_strategy == HubStrategy.CHECKPOINT
            name = "last-checkpoint" if last else Path(checkpoint_folder).name
            folders[name] = upload.checkpoint_files(checkpoint_folder)
            sends[name] = functools.partial(send, message=f"{message}, checkpoint", folder=name)
        self._in_background(take_snapshot(self._run(), folders), sends)

    def _finish_current_push(self) -> None:
        super()._finish_current_push()
        if self.push_in_progress is not None:
            for job in self.push_in_progress.jobs:
                report_failure(job, self._repo_id(), logging.ERROR, "call trainer.push_to_hub() to repeat it")
            self.push_in_progress = None

    # ---- Uploads ----

    def _repo_id(self) -> str:
        if self.hub_model_id is None:
            raise ValueError("there is no repository yet: call init_hf_repo() or push_to_hub() first")
        return str(self.hub_model_id)

    def _send(
        self,
        directory: Path,
        files: Mapping[str, Path],
        *,
        message: str,
        token: str | None,
        revision: str | None,
        folder: str = "",
        packed: bool = False,
    ) -> CommitInfo:
        """Upload files of `directory` as one commit."""
        repo_id = self._repo_id()
        api = self._hub or upload.hub_api()
        with tempfile.TemporaryDirectory(prefix="autosparse-") as scratch, upload.explained_refusal(repo_id):
            payload = upload.payload(directory, files, Path(scratch) / "packed", packed=packed)
            content = payload.with_card(ModelCard.load(directory / CARD), repo_id) if packed else payload.files
            return upload.commit(api, repo_id, content, message, folder=folder, token=token, revision=revision)

    def _remove_left_overs(self) -> None:
        if self.push_in_progress is None:
            remove_snapshots(self._run())

    def _in_background(self, snapshot: Path, sends: Mapping[str, functools.partial[CommitInfo]]) -> Future[CommitInfo]:
        """Upload the snapshot's folders one after the other, then remove it."""
        bound = [
            functools.partial(send, snapshot / folder, upload.checkpoint_files(snapshot / folder))
            for folder, send in sends.items()
        ]
        api = self._hub or upload.hub_api()
        future: Future[CommitInfo] = api.run_as_future(sending_job(snapshot, list(bound)))
        if self.push_in_progress is None or self.push_in_progress.is_done():
            for old in self.push_in_progress.jobs if self.push_in_progress is not None else []:
                report_failure(old, self._repo_id(), logging.WARNING, "this save is pushed instead")
            self.push_in_progress = push_in_progress([future])
        else:
            self.push_in_progress.jobs.append(future)
        return future


def without_token(args: Any) -> Any:
    """Training arguments as they may be written to a file that is uploaded: `hub_token` is a secret."""
    args = copy.copy(args)
    args.hub_token = None
    return args

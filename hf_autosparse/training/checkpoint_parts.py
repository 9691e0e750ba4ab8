"""What a run writes, part by part: each has `save(directory)` and `load(directory)`, and says when it is written.

The trainer holds one list of parts, in order, and goes through it at each `Stage`. Another thing to write is another
class here and another entry there.
"""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from enum import Enum, auto
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME

from ..layers.saving import deployable_state_dict, deployed
from ..reports.sparsity import sparsity_report
from ..serialization.files import PLOTS, loss_window
from ..utils.io import StrPath, write_text
from . import checkpoint
from ._trainer_compat import loss_since_last_log, restore_loss_since_last_log
from .averaged import evaluated_weights
from .hub_mixin import without_token
from .recorder import TrajectoryRecorder

if TYPE_CHECKING:
    from .trainer import AutoSparseMixin

logger = logging.getLogger(__name__)


class Stage(Enum):
    """The moments at which parts are written."""

    CHECKPOINT_BEGINS = auto()  # in the process that saves: nothing of the checkpoint is written yet
    MODEL_SAVED = auto()  # in the process that saves: every saved model; all its files are published in one step
    MODEL_PUBLISHED = auto()  # in the process that saves: a finished model, no checkpoint, is on disk
    CHECKPOINT_ENDS = auto()  # in every process: only the manifest and trainer_state.json are missing


class CheckpointPart(ABC):
    """One part of what a run writes."""

    stage: ClassVar[Stage]

    @abstractmethod
    def save(self, directory: Path) -> None:
        """Write this part's files into `directory`, which exists."""

    @abstractmethod
    def load(self, directory: Path) -> None:
        """Continue from what `save` wrote, as training resumes."""


def save_parts(parts: Iterable[CheckpointPart], stage: Stage, directory: StrPath) -> None:
    """Write the parts of one stage, in their order."""
    for part in parts:
        if part.stage is stage:
            part.save(Path(directory))


def load_parts(parts: Iterable[CheckpointPart], stages: Iterable[Stage], directory: StrPath) -> None:
    """Read the parts of some stages, in their order."""
    wanted = set(stages)
    for part in parts:
        if part.stage in wanted:
            part.load(Path(directory))


class NativeState(CheckpointPart):
    """`autosparse_state.safetensors`: raw weights, thresholds and buffers, under the names of the live model."""

    stage = Stage.CHECKPOINT_BEGINS

    def __init__(self, trainer: AutoSparseMixin) -> None:
        self._trainer = trainer

    def save(self, directory: Path) -> None:
        checkpoint.save_native_state(self._trainer.model, directory)

    def load(self, directory: Path) -> None:
        checkpoint.load_native_state(self._trainer.model, directory)


class DeployableModel(CheckpointPart):
    """`model.safetensors` with what was evaluated, and the files beside it that Trainer and stock transformers know."""

    stage = Stage.MODEL_SAVED

    def __init__(self, trainer: AutoSparseMixin, write: Callable[..., None]) -> None:
        """`write`: the `_save` of the trainer class behind the mixin."""
        self._trainer, self._write = trainer, write
        self.gathered: dict[str, Tensor] | None = None  # a state dict that Trainer made, where it makes one

    def save(self, directory: Path) -> None:
        trainer = self._trainer
        model = trainer.deployed_model()
        # deployed: for trainers that do not write the state that they are given (sentence-transformers).
        with evaluated_weights(model, trainer.optimizer), deployed(model):
            self._write(str(directory), state_dict=deployable_state_dict(model, self.gathered))
        torch.save(without_token(trainer.args), directory / TRAINING_ARGS_NAME)
        trainer.sparse_config.save_pretrained(directory)

    def load(self, directory: Path) -> None:
        """Nothing: its weights are thresholded ones, partly under other names. `NativeState` holds the raw ones."""


class RunTrajectory(CheckpointPart):
    """`autosparse_trajectory.json`: how sparsity developed, beside every saved model."""

    stage = Stage.MODEL_SAVED

    def __init__(self, recorder: TrajectoryRecorder) -> None:
        self._recorder = recorder

    def save(self, directory: Path) -> None:
        if self._recorder.trajectory is not None:
            self._recorder.trajectory.save(directory)

    def load(self, directory: Path) -> None:
        self._recorder.restore(directory)


class Plots(CheckpointPart):
    """`plots/training.png` and `plots/layers.png` beside a finished model, if matplotlib is installed."""

    stage = Stage.MODEL_PUBLISHED

    def __init__(self, trainer: AutoSparseMixin) -> None:
        self._trainer = trainer

    def save(self, directory: Path) -> None:
        """Draw the trainer's model and its trajectory; a full or read-only disk is a warning: the model is saved."""
        trainer = self._trainer
        if not trainer.draws_plots:
            return
        if find_spec("matplotlib") is None:
            logger.info('no plots: they need matplotlib, pip install "hf-autosparse[plots]"')
            return
        from ..plots.figures import plot_layers, plot_training

        try:
            plot_layers(sparsity_report(trainer.deployed_model()), directory / PLOTS / "layers.png")
            if trainer.trajectory is not None:
                plot_training(trainer.trajectory, directory / PLOTS / "training.png")
        except OSError as error:
            logger.warning("the model is saved, but its plots are not: %s", error)

    def load(self, directory: Path) -> None:
        """Nothing: pictures are drawn anew."""


class LossWindow(CheckpointPart):
    """`autosparse_loss_<process>.json`: the loss since the last log, for the mean in the next log."""

    stage = Stage.CHECKPOINT_ENDS

    def __init__(self, trainer: AutoSparseMixin) -> None:
        self._trainer = trainer

    def _path(self, directory: Path) -> Path:
        return directory / loss_window(self._trainer.args.process_index)

    def save(self, directory: Path) -> None:
        loss, since_step = loss_since_last_log(self._trainer)
        write_text(self._path(directory), json.dumps({"loss": loss, "since_step": since_step}))

    def load(self, directory: Path) -> None:
        path = self._path(directory)
        if not path.is_file():  # there were fewer processes then; an exact continuation is not possible anyway
            logger.warning(
                "%s is missing: the next logged loss is the mean since the resume, not since the last log", path
            )
            return
        content = json.loads(path.read_text())
        restore_loss_since_last_log(self._trainer, content["loss"], content["since_step"])


class PartsCallback(TrainerCallback):
    """Reads the parts when training resumes, and completes the model in `output_dir` when it ends.

    The native state is not among them: Trainer loads it earlier, before it wraps the model.
    """

    def __init__(self, parts: list[CheckpointPart]) -> None:
        self.resumes_from: str | None = None  # the checkpoint that training is about to resume from
        self._parts = parts
        self._saved_step: int | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._saved_step = None
        if self.resumes_from is not None:
            load_parts(self._parts, (Stage.MODEL_SAVED, Stage.CHECKPOINT_ENDS), self.resumes_from)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._saved_step = state.global_step

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """If a checkpoint holds what the model is now. A run without one is completed by `save_model` alone, so that
        nothing is lost if that fails."""
        is_best = args.load_best_model_at_end and state.best_model_checkpoint is not None
        on_disk = is_best or self._saved_step == state.global_step
        # The trials of a hyperparameter search would write over each other.
        if args.should_save and on_disk and not state.is_hyper_param_search:
            save_parts(self._parts, Stage.MODEL_PUBLISHED, args.output_dir or ".")

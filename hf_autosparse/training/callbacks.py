"""`AutoSparseCallback`: what Trainer calls around each optimizer step, and as it saves and resumes."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy, has_length

from . import checkpoint
from .driver import SparseTraining
from .optimizers import check_optimizer

logger = logging.getLogger(__name__)


class StepsCallback(TrainerCallback):
    """Drives a sparse model's methods by a `SparseTraining`. The trainers add it; their checkpoints hold the rest.

    Everything derives from `state.epoch` and `state.global_step`, so resuming needs no state of its own.
    """

    def __init__(self) -> None:
        self._training: SparseTraining | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        train_dataloader: Any = None,
        optimizer: torch.optim.Optimizer | None = None,
        **kwargs: Any,
    ) -> None:
        assert model is not None
        accumulation = args.gradient_accumulation_steps
        # Trainer counts a data set without a length as one epoch of max_steps steps.
        steps_per_epoch = None
        if has_length(train_dataloader):
            steps_per_epoch = max(1, math.ceil(len(train_dataloader) / accumulation))
        elif state.global_step > 0 and (state.epoch or 0.0) >= 1.0 and not args.ignore_data_skip:
            logger.warning(
                "the run is resumed at step %d in pass %d of a stream of unknown length: Trainer skips the batches of"
                " one pass only, so that other data follows than in an uninterrupted run. Save within the first pass,"
                " or give the stream enough data for max_steps (itertools.cycle, dataset.repeat)",
                state.global_step,
                int(state.epoch or 0.0) + 1,
            )
        self._training = SparseTraining(
            model,
            steps=state.max_steps,
            steps_per_epoch=steps_per_epoch,
            accumulation=accumulation,
            start_step=state.global_step,
        )
        if optimizer is not None:
            check_optimizer(optimizer, self._training.layers.values())

    @property
    def _driver(self) -> SparseTraining:
        assert self._training is not None, "Trainer calls on_train_begin first"
        return self._training

    def _epoch(self, state: TrainerState) -> float | None:
        """Epochs done; None without a length: Trainer counts each pass through a short stream as an epoch, whereas the
        run is one."""
        return None if self._driver.steps_per_epoch is None else state.epoch or 0.0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._driver.begin_step(self._epoch(state))

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._driver.before_optimizer_step()

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: torch.optim.Optimizer | None = None,
        **kwargs: Any,
    ) -> None:
        assert optimizer is not None
        self._driver.end_step(optimizer, self._epoch(state))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._driver.close()


class AutoSparseCallback(StepsCallback):
    """For a stock Trainer on a model that `sparsify` treated: drives its methods, and keeps its native state.

    `model.safetensors` holds effective weights, since `sparsify` sees to `save_pretrained`. The raw weights and
    thresholds lie beside it in `checkpoint-*`. They are read as training resumes from `output_dir`, and where the best
    model is loaded at the end.
    """

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        train_dataloader: Any = None,
        optimizer: torch.optim.Optimizer | None = None,
        **kwargs: Any,
    ) -> None:
        """Raises:
        ValueError: checkpoints would hold raw weights, because the model has no `save_pretrained`.
        IncompleteCheckpointError: the checkpoint that training resumes from has no native state.
        """
        super().on_train_begin(args, state, control, model, train_dataloader, optimizer, **kwargs)
        assert model is not None
        if args.save_strategy != SaveStrategy.NO and not hasattr(model, "save_pretrained"):
            raise ValueError(
                f"{type(model).__name__} has no save_pretrained, so a stock Trainer would save raw weights and"
                " thresholds: use AutoSparseTrainer, or save_strategy='no' and finalize(model) before saving"
            )
        if state.global_step > 0:
            checkpoint.load_native_state(model, _checkpoint(args, state))

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        assert model is not None
        if args.should_save and not state.is_hyper_param_search:  # trials have directories that we are not told
            checkpoint.save_native_state(model, _checkpoint(args, state))

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        super().on_train_end(args, state, control, **kwargs)
        assert model is not None
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            checkpoint.load_native_state(model, state.best_model_checkpoint)


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"

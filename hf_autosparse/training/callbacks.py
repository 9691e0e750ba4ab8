"""`AutoSparseCallback`: what Trainer calls around each optimizer step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import has_length

from .driver import SparseTraining
from .optimizers import check_optimizer


class AutoSparseCallback(TrainerCallback):
    """Drives a sparse model's methods by a `SparseTraining`. Works with any Trainer; AutoSparseTrainer adds it itself.

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

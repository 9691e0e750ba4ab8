"""The keyword arguments of transformers' trainers, typed, so that an editor and mypy know a misspelt one.

`tests/training/test_trainer_compat.py` compares them with the constructors of the installed release.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor
from transformers import EvalPrediction, PreTrainedModel, TrainerCallback

if TYPE_CHECKING:
    from torch.utils.data import Dataset


class Seq2SeqTrainerOptions(TypedDict, total=False):
    """What Seq2SeqTrainer takes besides the model and its arguments."""

    data_collator: Callable[[list[Any]], Any] | None
    train_dataset: Dataset[Any] | Any | None
    eval_dataset: Dataset[Any] | dict[str, Any] | Any | None
    processing_class: Any
    model_init: Callable[..., PreTrainedModel] | None
    compute_loss_func: Callable[..., Any] | None
    compute_metrics: Callable[[EvalPrediction], dict[str, Any]] | None
    callbacks: list[TrainerCallback] | None
    optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None]
    preprocess_logits_for_metrics: Callable[[Tensor, Tensor], Tensor] | None


class TrainerOptions(Seq2SeqTrainerOptions, total=False):
    """What Trainer takes besides the model and its arguments."""

    optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None

"""What we need of transformers' Trainer that is not its public interface. No other file names such a thing.

The private methods that our trainer overrides stand in the trainer itself; `OVERRIDDEN` lists them. Each function below
says which release brought what it touches, as far back as this package reaches (5.17), and when it can go.
tests/training/test_trainer_compat.py checks every name, its signature and the order of calls that we rely on.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedModel, Trainer, TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.loss.loss_utils import (
    ForCausalLMLoss,
    ForMaskedLMLoss,
    ForSequenceClassificationLoss,
    ForTokenClassification,
)
from transformers.utils.hub import PushInProgress

if TYPE_CHECKING:

    class TrainerBase(Trainer):
        """What a mixin may take for granted: it stands before a Trainer class, whose model is there."""

        model: nn.Module
        hub_model_id: str | None  # type: ignore[assignment]  # declared as None there, and set to a name later

else:
    TrainerBase = object

# Each has a call of its own in Trainer's loop, and no public method or callback event stands at that moment.
OVERRIDDEN = frozenset(
    {
        "_clip_grad_norm",
        "_determine_best_metric",
        "_finish_current_push",
        "_load_best_model",
        "_load_from_checkpoint",
        "_push_from_checkpoint",
        "_save",
        "_save_checkpoint",
        "_save_rng_state",
    }
)


def loss_since_last_log(trainer: Trainer) -> tuple[float, int]:
    """The loss summed since the last log, in this process, and the step of that log.

    In 5.17 and all since. Can go when Trainer saves this sum in its checkpoints.
    """
    return trainer._tr_loss.item(), trainer._globalstep_last_logged


def restore_loss_since_last_log(trainer: Trainer, loss: float, since_step: int) -> None:
    """Continue the sum of an interrupted run, for the next log; `train_loss` stays the mean over this call's steps.

    In 5.17 and all since. Can go when Trainer saves this sum in its checkpoints.
    """
    trainer._tr_loss += loss
    trainer._globalstep_last_logged = since_step
    trainer._total_loss_scalar -= loss


def divides_by_accumulation_steps(trainer: Trainer, num_items_in_batch: Any) -> bool:
    """Whether Trainer divides what `compute_loss` returns by the number of accumulated batches.

    The rule stands inside `Trainer.training_step`; `loss_is_scaled_for_ga` is public since 5.19, and `getattr` can go
    when that is the oldest release.
    """
    scaled: bool | None = getattr(trainer, "loss_is_scaled_for_ga", None)
    if scaled is None:
        counted = trainer.model_accepts_loss_kwargs and num_items_in_batch is not None
        scaled = counted or trainer.compute_loss_func is not None
    return not scaled


def known_loss_function(model: nn.Module) -> bool:
    """Whether `model.loss_function` is one of transformers' that are the mean over all labels other than -100.

    `loss_function` and these four are in 5.17 and all since. Can go when a model tells how its loss is reduced.
    """
    known = (ForCausalLMLoss, ForMaskedLMLoss, ForSequenceClassificationLoss, ForTokenClassification)
    return isinstance(model, PreTrainedModel) and model.loss_function in known


def shifts_labels(model: nn.Module) -> bool:
    """Whether the model's own loss skips the first label of each sequence.

    Trainer's guess goes by the class name and is wrong for GPT2LMHeadModel; it would count one token too many per
    sequence. `loss_function` and `ForCausalLMLoss` are in 5.17 and all since. Can go when that guess is right.
    """
    if not isinstance(model, PreTrainedModel) or model.config.is_encoder_decoder:
        return False
    return bool(model.loss_function is ForCausalLMLoss)


def prepared_inputs(trainer: Trainer, inputs: Any) -> Any:
    """A copy of the batch on the trainer's device, as `training_step` makes it. In 5.17 and all since."""
    return trainer._prepare_inputs(inputs)


def save_model_without_pushing(trainer: Trainer) -> None:
    """`save_model()` into `output_dir`, as a part of a push. In 5.17 and all since; there is no public way."""
    trainer.save_model(_internal_call=True)


def run_directory(trainer: Trainer, trial: Any) -> str:
    """Where checkpoints go: `output_dir`, or the folder of a trial inside it. In 5.17 and all since; no public way."""
    directory: str = trainer._get_output_dir(trial)
    return directory


def tracker_callbacks(trainer: Trainer) -> list[TrainerCallback]:
    """The callbacks that report to TensorBoard, W&B, trackio, ...: transformers' own and subclasses of them.

    The table is in 5.17 and all since, without an underscore and undocumented. Can go when `Trainer.log` can send
    scalars to the trackers alone.
    """
    kinds: tuple[type[TrainerCallback], ...] = tuple(INTEGRATION_TO_CALLBACK.values())
    return [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, kinds)]


def push_in_progress(jobs: list[Future[Any]]) -> Any:
    """What Trainer asks whether a push is done, and waits for. In 5.17 and all since; it is not documented."""
    return PushInProgress(jobs)  # type: ignore[arg-type]  # its annotation says one job; it takes a list

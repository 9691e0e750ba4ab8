"""The loss of a training step: the mean over the labels of the global batch, where a model computes such a mean.

`label_mean.py` tells which models those are; for all others Trainer computes and scales the loss. A model that is not
given `num_items_in_batch` returns the mean over the labels of one micro-batch. It is multiplied by
the micro-batch's share of the labels of all batches that make up an optimizer step, in all processes; the sum of these
is the mean over all labels: 8 accumulated batches of 1 = 1 batch of 8 = 2 processes with 4 each. A micro-batch without
a label contributes 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from ._trainer_compat import TrainerBase, divides_by_accumulation_steps, shifts_labels
from .label_mean import IGNORED_LABEL, innermost, is_mean_over_labels


class LossMixin(TrainerBase):
    """Weights losses by tokens where they are known to be means over tokens. A part of `AutoSparseMixin`.

    A trainer with a `compute_loss` of its own below this one (`SFTTrainer`, `DPOTrainer`), or a `compute_loss_func`,
    normalises by itself: both get what they get from Trainer. A subclass that overrides `compute_loss` gets Trainer's
    treatment of what it returns; where it calls `super().compute_loss`, that part is weighted.
    """

    _weights_tokens = False
    _labels_are_shifted = False
    _step_tokens: Tensor | None = None  # labels that the loss counts, in all batches of this optimizer step
    _loss_scale: int | None = None  # while a training step runs: what the loss is multiplied with besides the share

    def _prepare_loss(self) -> None:
        """Look at what the constructor was given: who computes the loss, and which labels it counts."""
        is_trainers_own = getattr(super().compute_loss, "__func__", None) is Trainer.compute_loss
        model = innermost(self.accelerator.unwrap_model(self.model, keep_torch_compile=False))
        # Trainer's label smoothing is such a mean. DataParallel counts in its own way.
        is_mean = self.label_smoother is not None or is_mean_over_labels(model)
        self._weights_tokens = is_trainers_own and self.compute_loss_func is None and self.args.n_gpu <= 1 and is_mean
        self._labels_are_shifted = shifts_labels(model)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        batches, num_items_in_batch = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._step_tokens = self._count_tokens(batches, device) if self._weights_tokens else None
        return batches, num_items_in_batch

    def _count_tokens(self, batches: list[Any], device: torch.device) -> Tensor | None:
        """int64 scalar: the labels of all batches, of all processes; None where a batch has no tensor of labels."""
        counts = [self._tokens(batch) for batch in batches]
        known = [count for count in counts if count is not None]
        if not known or len(known) < len(counts):
            return None
        total = torch.stack(known).sum().to(device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            total = self.accelerator.gather(total).sum()
        return total

    def _tokens(self, batch: Any) -> Tensor | None:
        """int64 scalar: how many labels of a batch the loss counts."""
        if not isinstance(batch, Mapping):
            return None
        shifted_already = "shift_labels" in batch
        labels = batch.get("shift_labels" if shifted_already else "labels")
        if not isinstance(labels, Tensor):
            return None
        if self._labels_are_shifted and not shifted_already:
            labels = labels[..., 1:]
        return labels.ne(IGNORED_LABEL).sum()

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor | Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        if self._step_tokens is not None:
            divided = divides_by_accumulation_steps(self, num_items_in_batch)
            self._loss_scale = self.current_gradient_accumulation_steps if divided else 1
            if self.args.average_tokens_across_devices:
                self._loss_scale *= self.accelerator.num_processes  # DDP averages the gradients of the processes
        try:
            return super().training_step(model, inputs, num_items_in_batch)
        finally:
            self._loss_scale = None

    def _has_no_label(self, batch: Any) -> bool:
        """Whether all labels of a batch are -100: a mean over none of them is NaN, and its gradients are 0."""
        tokens = self._tokens(batch)
        return tokens is not None and tokens.item() == 0

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Trainer's, and in a training step times the batch's share of the labels of the global batch.

        Some models ignore `num_items_in_batch`, so it is not passed on where the loss is weighted here.
        """
        tokens = self._tokens(inputs) if self._loss_scale is not None else None
        if tokens is None or self._step_tokens is None or self._loss_scale is None:
            return super().compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
        weight = tokens / self._step_tokens.clamp(min=1) * self._loss_scale
        result = super().compute_loss(model, inputs, return_outputs=return_outputs)
        loss, *outputs = result if isinstance(result, tuple) else (result,)
        # Selected, not multiplied: the mean over no label is NaN.
        weighted = torch.where(tokens > 0, loss * weight, torch.zeros_like(loss))
        return (weighted, outputs[0]) if outputs else weighted

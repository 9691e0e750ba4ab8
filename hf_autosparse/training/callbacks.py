"""What Trainer calls: annealing before every step, mask updates and the guard after it."""

from __future__ import annotations

import logging
import math

import torch
from torch import nn
from transformers import TrainerCallback
from transformers.trainer_utils import has_length

from ..layers.sparse import SparseLayer
from ..layers.sparsify import record_of, sparse_layers
from ..methods import Progress
from .target import hold_target

logger = logging.getLogger(__name__)

GUARD_INTERVAL = 10  # optimizer steps: a check reads every weight, and a threshold moves little in ten steps


class AutoSparseCallback(TrainerCallback):
    """Drives a sparse model's methods. Works with any Trainer; AutoSparseTrainer adds it by itself.

    Everything derives from `state.epoch` and `state.global_step`, so resuming needs no state of its own.
    """

    def __init__(self) -> None:
        self._layers: dict[str, SparseLayer] = {}
        self._epochs = 1.0
        self._warned: set[str] = set()

    def on_train_begin(self, args, state, control, model=None, train_dataloader=None, **kwargs):
        record = record_of(model)
        self._layers = sparse_layers(model)
        if not self._layers:
            raise ValueError(
                f"{type(model).__name__} has no sparse layer: call sparsify(model, config) before training"
            )
        for layer in self._layers.values():
            layer.reuses = args.gradient_accumulation_steps > 1
        if has_length(train_dataloader):
            steps_per_epoch = math.ceil(len(train_dataloader) / args.gradient_accumulation_steps)
            self._epochs = state.max_steps / max(1, steps_per_epoch)
        else:
            self._epochs = 1.0  # Trainer counts a data set without a length as one epoch of max_steps steps
            if record.config.alpha_update == "epoch" and record.config.alpha_schedule not in (None, "fixed"):
                raise ValueError(
                    "alpha_update='epoch' needs a training set with a length, and this one has none:"
                    " use alpha_update='step'"
                )

    def on_train_end(self, args, state, control, **kwargs):
        for layer in self._layers.values():  # as large as the model: nobody trains with them now
            layer.reuses = False
            layer.forget_derived()

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        progress = self._progress(state)
        for layer in self._layers.values():
            layer.sparsifier.begin_step(progress)

    @torch.no_grad()
    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        for layer in self._layers.values():
            layer.sparsifier.regularise(layer.weight)

    @torch.no_grad()
    def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
        progress = self._progress(state)
        for layer in self._layers.values():
            grown = layer.sparsifier.end_step(layer.weight, progress)
            if grown is not None:
                reset_optimizer_state(optimizer, layer.weight, grown)
        config = record_of(model).config
        if config.learns_target:
            hold_target(self._layers.values(), config.target_sparsity, config.target_ramp, progress)
        if state.global_step % GUARD_INTERVAL == 0 or state.global_step == state.max_steps:
            self.guard(model, state.global_step)

    def _progress(self, state) -> Progress:
        return Progress(state.epoch or 0.0, self._epochs, state.global_step, state.max_steps)

    @torch.no_grad()
    def guard(self, model: nn.Module, step: int) -> None:
        """Hold the layers that passed `max_layer_sparsity`, and stop on a threshold that is not finite.

        Raises:
            FloatingPointError: names the layers whose sparsifier holds NaN or infinity.
        """
        layers = sparse_layers(model)
        maximum = record_of(model).config.max_layer_sparsity
        kept = torch.stack([layer.sparsifier.mask(layer.weight).sum() for layer in layers.values()])
        finite = torch.stack([layer.sparsifier.is_finite() for layer in layers.values()])
        kept, finite = torch.stack([kept, finite.to(kept)]).tolist()
        if not all(finite):
            broken = [name for name, ok in zip(layers, finite, strict=True) if not ok]
            raise FloatingPointError(
                f"non-finite threshold at step {step} in {', '.join(broken)}: lower threshold_lr or the learning rate"
            )
        for (name, layer), count in zip(layers.items(), kept, strict=True):
            size = layer.weight.numel()
            held = size - count > int(maximum * size) and layer.sparsifier.limit_sparsity(layer.weight, maximum)
            layer.sparsifier.at_guard.fill_(held)
            if held and name not in self._warned:
                self._warned.add(name)
                logger.warning(
                    "layer %s reached sparsity %.4f at step %d; it is held at max_layer_sparsity = %s",
                    name,
                    1 - count / size,
                    step,
                    maximum,
                )


def reset_optimizer_state(optimizer: torch.optim.Optimizer, weight: nn.Parameter, grown: torch.Tensor) -> None:
    """Zero what the optimizer remembers of newly grown weights: momentum (SGD), both moments (Adam family).

    State that is not shaped like the weight (step counts) is the layer's and stays.
    """
    for value in optimizer.state.get(weight, {}).values():
        if isinstance(value, torch.Tensor) and value.shape == weight.shape:
            value.masked_fill_(grown, 0)

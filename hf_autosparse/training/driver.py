"""`SparseTraining`: makes the calls that the methods need around each optimizer step, in any training loop."""

from __future__ import annotations

import logging

import torch
from torch import nn

from ..layers.crossover import measure_layers
from ..layers.saving import save_deployed
from ..layers.sparsify import sparse_layers
from ..methods import Annealing, Progress, SparseConfig, Target
from ..utils.validation import check_count
from .grown import start_optimizer_state
from .optimizers import check_optimizer
from .target import hold_target
from .trainable import check_forwards, check_trainable

logger = logging.getLogger(__name__)

GUARD_INTERVAL = 10  # optimizer steps: a check reads every weight, and a threshold moves little in ten steps


def check_single_epoch(config: SparseConfig) -> None:
    """Check settings for a training set without a length: the run is one epoch, so none may count several.

    Raises:
        ValueError: names the setting, and what to use.
    """
    if not isinstance(config, Annealing):
        return
    if config.alpha_update == "epoch" and config.alpha_schedule != "fixed":
        raise ValueError(
            "alpha_update='epoch' needs a training set with a length (steps_per_epoch): without one, use"
            " alpha_update='step'"
        )
    for name in ("alpha_epochs", "alpha_zero_epoch"):
        epochs = getattr(config, name)
        if epochs is not None and epochs > 1:
            raise ValueError(
                f"{name} = {epochs} needs a training set with a length (steps_per_epoch): without one, the run is one"
                " epoch, so give a share of it, at most 1"
            )


class SparseTraining:
    """Drives the methods of a sparse model through a training loop.

    It anneals, collects gradients, adds penalties, updates masks, resets the optimizer's state of grown weights, holds
    `target_sparsity` and `max_layer_sparsity`, and stops on a threshold that is not finite. All of this depends on the
    number of steps done and on the model alone: a resumed run needs the model's and the optimizer's state dicts, and
    `start_step`.

    >>> import torch
    >>> from torch.nn.functional import cross_entropy
    >>> from hf_autosparse import AutoSparseConfig, SparseTraining, finalize, sparsify, sparsity
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    >>> config = AutoSparseConfig(first_last="none", target_sparsity=0.8)
    >>> optimizer = torch.optim.SGD(sparsify(model, config).parameters(), lr=0.1)
    >>> training = SparseTraining(model, steps=60, steps_per_epoch=20)
    >>> for step in range(60):
    ...     inputs, labels = torch.randn(16, 8), torch.randint(4, (16,))
    ...     training.begin_step()
    ...     cross_entropy(model(inputs), labels).backward()
    ...     training.before_optimizer_step()
    ...     optimizer.step()
    ...     training.end_step(optimizer)
    ...     optimizer.zero_grad()
    >>> round(sparsity(finalize(model)), 2)
    0.8

    Args:
        model: from `sparsify`; may be wrapped (DistributedDataParallel, `torch.compile`).
        steps: optimizer steps of the whole run.
        steps_per_epoch: of the training data; None for one epoch of `steps` steps.
        accumulation: micro-batches of an optimizer step. If there are several, they share the effective weights.
        start_step: steps that are done already.

    Raises:
        ValueError: the model has no sparse layer, or layers with different configurations, or frozen ones; PEFT would
            save adapters alone; a number is out of range; `alpha_update="epoch"`, or more than one epoch of alpha,
            without `steps_per_epoch`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        steps: int,
        steps_per_epoch: int | None = None,
        accumulation: int = 1,
        start_step: int = 0,
    ):
        self.layers = sparse_layers(model)
        if not self.layers:
            raise ValueError(
                f"{type(model).__name__} has no sparse layer: call sparsify(model, config) before training"
            )
        self.config = next(iter(self.layers.values())).sparsifier.config
        if any(layer.sparsifier.config != self.config for layer in self.layers.values()):
            raise ValueError(
                "the model's layers have different configurations: sparsify the whole model with one, or drive each"
                " part by a SparseTraining of its own"
            )
        check_trainable(model)
        save_deployed(model)  # sparsify may have seen a part of it only
        check_count("steps", steps, low=0)
        check_count("accumulation", accumulation)
        check_count("start_step", start_step, low=0)
        if steps_per_epoch is not None:
            check_count("steps_per_epoch", steps_per_epoch)
        else:
            check_single_epoch(self.config)
        self.steps, self.step, self.accumulation = steps, start_step, accumulation
        self.steps_per_epoch = steps_per_epoch
        self._in_step = False
        self._checked_optimizer = False
        self._warned: set[str] = set()
        measure_layers(self.layers.values())

    def begin_step(self, epoch: float | None = None) -> None:
        """Called before the first forward pass of an optimizer step.

        Args:
            epoch: epochs done, where the loop counts them itself; else `step / steps_per_epoch`.

        Raises:
            ValueError: something gave a sparse layer a forward of its own.
        """
        check_forwards(self.layers)
        progress = self._progress(epoch)
        for layer in self.layers.values():
            layer.begin_step(progress, self.accumulation)
        self._in_step = True

    def before_optimizer_step(self) -> None:
        """Called once the gradients are complete: accumulated, unscaled and clipped.

        Raises:
            RuntimeError: `begin_step` was not called.
        """
        self._check_in_step("before_optimizer_step")
        for layer in self.layers.values():
            layer.before_optimizer_step()

    @torch.no_grad()
    def end_step(self, optimizer: torch.optim.Optimizer, epoch: float | None = None) -> None:
        """Called after the optimizer's step.

        Args:
            optimizer: has the model's weights; what it remembers of newly grown ones starts over.
            epoch: epochs done with this step, where the loop counts them itself.

        Raises:
            RuntimeError: `begin_step` was not called.
            ValueError: the optimizer does not suit the method.
            FloatingPointError: names the layers whose sparsifier holds NaN or infinity.
        """
        self._check_in_step("end_step")
        if not self._checked_optimizer:
            check_optimizer(optimizer, self.layers.values())
            self._checked_optimizer = True
        self._in_step = False
        self.step += 1
        progress = self._progress(epoch)
        for layer in self.layers.values():
            grown = layer.end_step(progress)
            if grown is not None:
                kept = layer.sparsifier.mask(layer.weight) & ~grown
                start_optimizer_state(optimizer, layer.weight, grown, kept, layer.sparsifier.gradient_at_growth())
        config = self.config
        if isinstance(config, Target) and (config.target_sparsity is not None or self._starts_pruned()):
            hold_target(self.layers.values(), config.target_sparsity, config.target_ramp, progress)
        if self.step % GUARD_INTERVAL == 0 or self.step == self.steps:
            self.guard()

    def close(self) -> None:
        """Called where a run may end inside a step: nothing derived from the weights stays in memory."""
        self._in_step = False
        for layer in self.layers.values():
            layer.open_step = None

    @torch.no_grad()
    def guard(self) -> None:
        """Hold the layers that passed `max_layer_sparsity`, and stop on a threshold that is not finite.

        Raises:
            FloatingPointError: names the layers whose sparsifier holds NaN or infinity.
        """
        layers = self.layers
        maximum = self.config.sparsity_limit
        kept = torch.stack([layer.sparsifier.mask(layer.weight).sum() for layer in layers.values()])
        finite = torch.stack([layer.sparsifier.is_finite() for layer in layers.values()])
        counts, is_finite = torch.stack([kept, finite.to(kept)]).tolist()
        if not all(is_finite):
            broken = [name for name, ok in zip(layers, is_finite, strict=True) if not ok]
            raise FloatingPointError(
                f"non-finite threshold at step {self.step} in {', '.join(broken)}: lower threshold_lr or the learning"
                " rate"
            )
        for (name, layer), count in zip(layers.items(), counts, strict=True):
            size = layer.weight.numel()
            held = size - count > int(maximum * size)
            if held:
                layer.sparsifier.limit_sparsity(layer.weight, maximum)
            layer.sparsifier.at_guard.fill_(held)
            if held and name not in self._warned:
                self._warned.add(name)
                logger.warning(
                    "layer %s reached sparsity %.4f at step %d; it is held at max_layer_sparsity = %s",
                    name,
                    1 - count / size,
                    self.step,
                    maximum,
                )

    def _starts_pruned(self) -> bool:
        return any(layer.sparsifier.start_sparsity > 0 for layer in self.layers.values())

    def _progress(self, epoch: float | None) -> Progress:
        steps_per_epoch = (self.steps or 1) if self.steps_per_epoch is None else self.steps_per_epoch
        return Progress(
            epoch=self.step / steps_per_epoch if epoch is None else epoch,
            epochs=self.steps / steps_per_epoch,
            step=self.step,
            steps=self.steps,
        )

    def _check_in_step(self, name: str) -> None:
        if not self._in_step:
            raise RuntimeError(f"{name}() without an open step: call begin_step() before the step's first forward pass")

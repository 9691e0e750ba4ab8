"""Records a run's trajectory: sparsity and alpha at moments spread over training, and what each layer costs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..layers.sparse import SparseLayer
from ..layers.sparsify import sparse_layers
from ..reports.flops import batch_size, count_macs, counted_layers
from ..reports.trajectory import LayerCost, Moment, Trajectory

logger = logging.getLogger(__name__)

MOMENTS = 200  # about so many moments a run


@dataclass(frozen=True)
class _Reading:
    """A moment whose numbers are still on the device. `counts`: int64 (2, layers), the non-zeros of the effective
    weights and of their gradients. `threshold`: float32 (layers,)."""

    step: int
    epoch: float
    alpha: float | None
    counts: Tensor
    threshold: Tensor | None


class TrajectoryRecorder(TrainerCallback):
    """Fills a `Trajectory`. An AutoSparse trainer adds it behind the callback that anneals and guards.

    Moments lie at every `max_steps / 200`-th step, at the last one, at the start of every epoch (of up to 200), and
    wherever alpha reaches or leaves 0. A moment reads every weight, but its counts stay on the device until something
    that waits for the device anyway collects them: a log, a save, or whoever asks for `trajectory`. Every process
    records; the first one's is saved.
    """

    def __init__(self) -> None:
        self.awaits_costs = False  # whether `measuring_costs` shall be put around the next forward
        self._layers: dict[str, SparseLayer] = {}
        self._trajectory: Trajectory | None = None
        self._pending: list[_Reading] = []

    @property
    def trajectory(self) -> Trajectory | None:
        """What was recorded so far; None before training begins."""
        self._collect()
        return self._trajectory

    @contextmanager
    def measuring_costs(self, model: nn.Module, batch: dict[str, Any]) -> Iterator[None]:
        """Takes the MACs of each layer, for one example, from the forward pass on `batch` inside the block.

        The forward is the training's own, so there is none that could fail or cost time. Where it shows nothing (no
        tensor in the batch, an overridden `training_step`), the trajectory's `layers` stay empty.
        """
        self.awaits_costs = False
        with count_macs(model) as macs:
            yield
        examples = batch_size(batch)
        if self._trajectory is not None and examples is not None and any(macs.values()):
            self._trajectory.layers = {
                name: LayerCost(round(macs[name] / examples), cast(Tensor, layer.weight).numel())
                for name, layer in counted_layers(model).items()
            }

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        assert model is not None  # Trainer always passes it
        self._layers = sparse_layers(model)
        self._pending = []
        self._trajectory = Trajectory(state.max_steps, list(self._layers), steps_done=state.global_step)
        self.awaits_costs = True

    def restore(self, directory: Path) -> None:
        """Continue the trajectory that a checkpoint holds. Called after `on_train_begin`; without it a run begins anew.

        A checkpoint without a trajectory is a warning.
        """
        trajectory = self._trajectory
        if trajectory is None:  # taken out of the trainer's callbacks: nothing is recorded
            return
        begins_at = trajectory.steps_done or 0
        try:
            before = Trajectory.load(directory)
        except FileNotFoundError as error:
            logger.warning("%s; this one begins at step %d and gives no training FLOPs", error, begins_at)
            return
        trajectory.layers = before.layers
        trajectory.moments = [moment for moment in before.moments if moment.step < begins_at]
        self.awaits_costs = not trajectory.layers

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._due(state):
            self._read(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._trajectory is not None:
            self._trajectory.steps_done = state.global_step
        if state.global_step == state.max_steps:
            self._read(state)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._collect()

    def _due(self, state: TrainerState) -> bool:
        """Whether the step to come begins a moment: a function of state and last moment alone, so resuming is exact."""
        readings = self._pending or (self._trajectory.moments if self._trajectory is not None else [])
        if not readings or state.global_step % -(-state.max_steps // MOMENTS) == 0:
            return True
        if state.num_train_epochs <= MOMENTS and float(state.epoch or 0.0).is_integer():
            return True
        return (readings[-1].alpha == 0) != (self._alpha() == 0)

    def _alpha(self) -> float | None:
        """The same in all layers: it depends on progress alone."""
        return next(iter(self._layers.values())).sparsifier.alpha

    @torch.no_grad()
    def _read(self, state: TrainerState) -> None:
        kept, learning, thresholds = [], [], []
        for layer in self._layers.values():
            weight, sparsifier = layer.weight, layer.sparsifier
            kept.append(sparsifier.mask(weight).count_nonzero())  # several times cheaper than the effective weight
            learning.append(sparsifier.gradient_count(weight))
            threshold = sparsifier.metrics().get("mean_threshold")
            if threshold is not None:
                thresholds.append(torch.as_tensor(threshold, dtype=torch.float32, device=weight.device))
        counts = torch.stack([torch.stack(kept), torch.stack(learning)])
        threshold = torch.stack(thresholds) if thresholds else None
        self._pending.append(_Reading(state.global_step, float(state.epoch or 0.0), self._alpha(), counts, threshold))

    def _collect(self) -> None:
        """Turn what was read into moments, with one transfer from the device for all counts and one for thresholds."""
        if not self._pending or self._trajectory is None:
            return
        readings, self._pending = self._pending, []
        sizes = [layer.weight.numel() for layer in self._layers.values()]
        counts = torch.stack([reading.counts for reading in readings]).tolist()
        thresholds: list[list[float] | None] = [None] * len(readings)
        measured = [reading.threshold for reading in readings if reading.threshold is not None]
        if measured:
            thresholds = torch.stack(measured).tolist()
        for reading, (kept, learning), threshold in zip(readings, counts, thresholds, strict=True):
            self._trajectory.moments.append(
                Moment(
                    step=reading.step,
                    epoch=reading.epoch,
                    alpha=reading.alpha,
                    sparsity=tuple(1 - count / size for count, size in zip(kept, sizes, strict=True)),
                    backward_sparsity=tuple(1 - count / size for count, size in zip(learning, sizes, strict=True)),
                    threshold=None if threshold is None else tuple(threshold),
                )
            )

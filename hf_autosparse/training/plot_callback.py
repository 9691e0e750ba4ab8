"""Pictures beside every finished model: what a run did, at a glance."""

from __future__ import annotations

import logging
import os
from importlib.util import find_spec
from pathlib import Path

from transformers import TrainerCallback

from ..reports.sparsity import sparsity_report

logger = logging.getLogger(__name__)

FOLDER = "plots"


class PlotCallback(TrainerCallback):
    """Draws `plots/training.png` and `plots/layers.png` beside a model, once that model is on disk.

    This is when `save_model` has written it; and, in `output_dir`, at the end of training, if a checkpoint holds what
    the model then is. A run without one is drawn by `save_model` alone, so that nothing is lost if drawing fails. Only
    the process that saves draws, and only if matplotlib is installed. `trainer.remove_callback(PlotCallback)` turns it
    off.
    """

    def __init__(self, trainer) -> None:
        self._trainer = trainer
        self._saved_step: int | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        self._saved_step = None

    def on_save(self, args, state, control, **kwargs):
        self._saved_step = state.global_step

    def on_train_end(self, args, state, control, **kwargs):
        is_best = args.load_best_model_at_end and state.best_model_checkpoint is not None
        on_disk = is_best or self._saved_step == state.global_step
        # The trials of a hyperparameter search would draw over each other.
        if args.should_save and on_disk and not state.is_hyper_param_search:
            self.draw(args.output_dir)

    def draw(self, directory: str | os.PathLike) -> None:
        """Draw the trainer's model and its trajectory into `directory`/plots; a full or read-only disk is a warning."""
        if find_spec("matplotlib") is None:
            logger.info('no plots: they need matplotlib, pip install "hf-autosparse[plots]"')
            return
        from ..plots.figures import plot_layers, plot_training

        trainer, folder = self._trainer, Path(directory) / FOLDER
        model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
        try:
            plot_layers(sparsity_report(model), folder / "layers.png")
            if trainer.trajectory is not None:
                plot_training(trainer.trajectory, folder / "training.png")
        except OSError as error:
            logger.warning("the model is saved, but its plots are not: %s", error)

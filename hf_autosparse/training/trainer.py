"""`AutoSparseTrainer`: Trainer that trains sparse models. The mixin serves any other Trainer subclass."""

from __future__ import annotations

import contextlib
import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PrinterCallback, ProgressCallback, Seq2SeqTrainer, Trainer
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_callback import TrainerCallback

from ..config import AutoSparseConfig
from ..layers.sparse import SparseLayer
from ..layers.sparsify import (
    deployable_state_dict,
    folded,
    layer_sparsity,
    plain_parameters,
    record_of,
    sparse_layers,
    sparsifier_parameters,
    sparsify,
)
from ..reports.trajectory import Trajectory
from ..serialization.files import loss_window
from . import checkpoint
from .callbacks import AutoSparseCallback
from .hub_mixin import HubMixin, without_token
from .plot_callback import PlotCallback
from .recorder import TrajectoryRecorder

logger = logging.getLogger(__name__)


class AutoSparseMixin(HubMixin):
    """Put before a Trainer class: `class MyTrainer(AutoSparseMixin, SFTTrainer)`.

    Args:
        model: a dense model, sparsified in place, or one that `sparsify` already treated.
        args: the Trainer's arguments.
        sparse_config: None for the model's own configuration, or the default one if the model is dense.
        **kwargs: everything else the Trainer takes.

    What it changes: thresholds are an optimizer group of their own; the loss is the mean over all tokens of the global
    batch for every model (8 x 1 accumulated = 1 x 8 = 2 processes); evaluation uses folded weights; every written
    `model.safetensors` is the model that was evaluated; checkpoints are whole or not taken; a non-finite loss stops.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        args: Any = None,
        sparse_config: AutoSparseConfig | None = None,
        **kwargs: Any,
    ):
        self.sparse_config = sparse_config
        if isinstance(model, str):
            raise TypeError(f"model = {model!r}: load it first (from_pretrained), AutoSparse trainers take a module")
        if model is not None:
            model = self._sparsified(model)
        super().__init__(model, args, **kwargs)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "AutoSparse trainers run in one process or under DDP; FSDP and DeepSpeed are not supported"
            )
        # A compute_loss_func does its own normalisation; DataParallel counts in its own way.
        self._normalises_loss = self.compute_loss_func is None and self.args.n_gpu <= 1
        if self._normalises_loss:
            self.model_accepts_loss_kwargs = True  # makes Trainer count the tokens of the global batch
            self._loss_shifts_labels = _shifts_labels(self.model)
        self.add_callback(AutoSparseCallback())
        self.add_callback(_LossAcrossResume(self))
        self._recorder = TrajectoryRecorder()
        self._first_batch: dict[str, Any] | None = None
        self.add_callback(self._recorder)
        self.add_callback(PlotCallback(self))

    def _sparsified(self, model: nn.Module) -> nn.Module:
        if not sparse_layers(model):
            self.sparse_config = self.sparse_config or AutoSparseConfig()
            return self._tagged(sparsify(model, self.sparse_config))
        config = record_of(model).config
        if self.sparse_config is not None and self.sparse_config != config:
            raise ValueError("sparse_config differs from the one the model was sparsified with: pass None or the same")
        self.sparse_config = config
        return self._tagged(model)

    def call_model_init(self, trial=None) -> nn.Module:
        return self._sparsified(super().call_model_init(trial))

    # ---- Optimizer ----

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        thresholds = list(sparsifier_parameters(self.model if model is None else model).values())
        ids = {id(p) for p in thresholds}
        if self.optimizer is not None:
            known = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
            if not ids <= known:
                raise ValueError(
                    "the optimizer passed to the trainer lacks the thresholds, so they would never learn: call"
                    " sparsify(model, config) before building it, or pass optimizer_cls_and_kwargs instead"
                )
            return super().create_optimizer(model)
        optimizer = super().create_optimizer(model)
        for group in optimizer.param_groups:
            group["params"] = [p for p in group["params"] if id(p) not in ids]
        config = self.sparse_config
        if thresholds:
            optimizer.add_param_group(
                {
                    "params": thresholds,
                    "lr": self.args.learning_rate if config.threshold_lr is None else config.threshold_lr,
                    "weight_decay": config.threshold_weight_decay,
                }
            )
        return optimizer

    def _clip_grad_norm(self, model: nn.Module):
        if self.sparse_config.clip_thresholds:
            return super()._clip_grad_norm(model)
        weights = plain_parameters(model).values()
        return self.accelerator.clip_grad_norm_(list(weights), self.args.max_grad_norm)

    # ---- Loss ----

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The mean over the tokens of the global batch: the mean over this micro-batch's, times its share of them.

        Some models ignore num_items_in_batch, so it is never passed on to the model.
        """
        if not self._normalises_loss or num_items_in_batch is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["labels"]
        if self._loss_shifts_labels:
            labels = labels[..., 1:]
        share = labels.ne(-100).sum() / num_items_in_batch
        if self.args.average_tokens_across_devices:
            share = share * self.accelerator.num_processes  # DDP averages the gradients of the processes
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        loss = loss * share
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model, inputs, num_items_in_batch=None):
        self._first_batch = inputs if self._recorder.awaits_costs else None
        loss = super().training_step(model, dict(inputs), num_items_in_batch)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"loss is {loss.item()} at step {self.state.global_step + 1}; first non-finite in:"
                f" {self._first_non_finite(inputs)}. Lower the learning rate, or threshold_lr if it is a threshold"
            )
        return loss

    def compute_loss_context_manager(self) -> contextlib.ExitStack:
        """Wraps the forward of a training step; the first one also measures the layers' MACs for the trajectory."""
        stack = super().compute_loss_context_manager()
        if self._first_batch is not None:
            stack.enter_context(self._recorder.measuring_costs(self.model, self._first_batch))
            self._first_batch = None
        return stack

    @torch.no_grad()
    def _first_non_finite(self, inputs: dict[str, Any]) -> str:
        """Name the layer where the trouble starts: a bad parameter, else the first bad output of a repeated forward."""
        for name, parameter in self.model.named_parameters():
            if not parameter.isfinite().all():
                return f"parameter {name}"
        bad: list[str] = []

        def watch(name):
            def hook(module, args, output):
                if isinstance(output, torch.Tensor) and not output.isfinite().all():
                    bad.append(name)

            return hook

        handles = [
            module.register_forward_hook(watch(name))
            for name, module in self.model.named_modules()
            if isinstance(module, SparseLayer) or not list(module.children())
        ]
        try:
            self.model(**self._prepare_inputs(inputs))
        finally:
            for handle in handles:
                handle.remove()
        return f"output of layer {bad[0]}" if bad else "the loss itself; all parameters and layer outputs are finite"

    # ---- Logging ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs.update(self._sparse_metrics())
        super().log(logs, start_time)

    def _sparse_metrics(self) -> dict[str, float]:
        """sparsity, layers_at_guard, and the method's own scalars (alpha, mean_threshold) averaged over layers."""
        layers = sparse_layers(self.model)
        fractions = layer_sparsity(self.model)
        total = sum(layer.weight.numel() for layer in layers.values())
        metrics = {"sparsity": sum(fractions[name] * layer.weight.numel() for name, layer in layers.items()) / total}
        values: dict[str, list[torch.Tensor]] = {}
        for layer in layers.values():
            for key, value in layer.sparsifier.metrics().items():
                values.setdefault(key, []).append(torch.as_tensor(value, dtype=torch.float64))
            values.setdefault("layers_at_guard", []).append(layer.sparsifier.at_guard.double())
        for key, column in values.items():
            stacked = torch.stack([v.reshape(()).to(column[-1].device) for v in column])
            metrics[key] = (stacked.sum() if key == "layers_at_guard" else stacked.mean()).item()
        return metrics

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        metrics = super().evaluate(*args, **kwargs)
        self._log_layers()
        return metrics

    def _log_layers(self) -> None:
        """Send each layer's sparsity and metrics to the trackers (TensorBoard, W&B, ...), not to the console."""
        logs: dict[str, float] = {}
        fractions = layer_sparsity(self.model)
        for name, layer in sparse_layers(self.model).items():
            logs[f"layers/{name}/sparsity"] = fractions[name]
            for key, value in layer.sparsifier.metrics().items():
                if isinstance(value, torch.Tensor):
                    logs[f"layers/{name}/{key}"] = value.item()
        for callback in self.callback_handler.callbacks:
            if not isinstance(callback, (PrinterCallback, ProgressCallback)):
                callback.on_log(
                    self.args,
                    self.state,
                    self.control,
                    logs=logs,
                    model=self.model,
                    processing_class=self.processing_class,
                )

    @property
    def trajectory(self) -> Trajectory | None:
        """How sparsity developed up to now; None before training. `flops(model, inputs, trainer.trajectory)`."""
        return self._recorder.trajectory

    # ---- Evaluation ----

    def evaluation_loop(self, *args, **kwargs):
        with folded(self.model):
            return super().evaluation_loop(*args, **kwargs)

    # ---- Checkpoints ----

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if not self.args.should_save:
            return
        directory = Path(output_dir or self.args.output_dir)
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        staging = checkpoint.staging_directory(directory)
        super()._save(str(staging), state_dict=deployable_state_dict(model, state_dict))
        torch.save(without_token(self.args), staging / TRAINING_ARGS_NAME)
        self.sparse_config.save_pretrained(staging)
        if self.trajectory is not None:
            self.trajectory.save(staging)
        checkpoint.publish(staging, directory)
        if not checkpoint.is_checkpoint(directory):
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, PlotCallback):
                    callback.draw(directory)

    def _save_checkpoint(self, model, trial) -> None:
        if self.args.should_save:
            directory = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
            checkpoint.invalidate(directory)
            checkpoint.save_native_state(self.model, directory)
        super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        """The last thing Trainer writes before `trainer_state.json`: the moment to add ours and seal the checkpoint."""
        super()._save_rng_state(output_dir)
        _LossAcrossResume.save(self, output_dir)
        self.accelerator.wait_for_everyone()  # every process has written its part
        if self.args.should_save:
            checkpoint.write_manifest(output_dir)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        if resume_from_checkpoint is True:
            path, passed_over = checkpoint.last_whole_checkpoint(self.args.output_dir)
            for reason in passed_over:
                logger.warning("not resuming from a checkpoint that is not whole: %s", reason)
            if path is None:
                raise ValueError(f"resume_from_checkpoint=True, but {self.args.output_dir} holds no whole checkpoint")
            resume_from_checkpoint = str(path)
        elif resume_from_checkpoint:
            checkpoint.check_whole(resume_from_checkpoint)
        self._resumed_from = self._recorder.resumed_from = resume_from_checkpoint or None
        return super().train(resume_from_checkpoint=self._resumed_from, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        # Not Trainer's own loading: model.safetensors holds thresholded weights, partly under other names.
        checkpoint.load_native_state(self.model if model is None else model, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        logger.info("loading the best model from %s", self.state.best_model_checkpoint)
        checkpoint.load_native_state(self.model, self.state.best_model_checkpoint)


def _shifts_labels(model: nn.Module) -> bool:
    """Whether the model's loss skips the first label. Trainer's own answer is wrong where the class name tells nothing
    of the loss (GPT2LMHeadModel), and it would then count one token too many per sequence."""
    if not isinstance(model, PreTrainedModel) or model.config.is_encoder_decoder:
        return False
    return model.loss_function is ForCausalLMLoss


class _LossAcrossResume(TrainerCallback):
    """Carries the loss summed since the last log over a resume, so that the next log equals the uninterrupted one."""

    def __init__(self, trainer: Trainer):
        self._trainer = trainer

    @staticmethod
    def _path(trainer: Trainer, directory: str) -> Path:
        return Path(directory) / loss_window(trainer.args.process_index)

    @classmethod
    def save(cls, trainer: Trainer, directory: str) -> None:
        loss = {"loss": trainer._tr_loss.item(), "since_step": trainer._globalstep_last_logged}
        cls._path(trainer, directory).write_text(json.dumps(loss))

    def on_train_begin(self, args, state, control, **kwargs):
        trainer = self._trainer
        if state.global_step == 0 or trainer._resumed_from is None:
            return
        path = self._path(trainer, trainer._resumed_from)
        if not path.is_file():  # there were fewer processes then; an exact continuation is not possible anyway
            logger.warning(
                "%s is missing: the next logged loss is the mean since the resume, not since the last log", path
            )
            return
        loss = json.loads(path.read_text())
        trainer._tr_loss += loss["loss"]
        trainer._globalstep_last_logged = loss["since_step"]
        trainer._total_loss_scalar -= loss["loss"]  # train_loss is the mean over this call's steps only


class AutoSparseTrainer(AutoSparseMixin, Trainer):
    """`AutoSparseTrainer(model, args, sparse_config)`; everything else of Trainer by keyword."""


class AutoSparseSeq2SeqTrainer(AutoSparseMixin, Seq2SeqTrainer):
    """`AutoSparseSeq2SeqTrainer(model, args, sparse_config)`; everything else of Seq2SeqTrainer by keyword."""

"""`AutoSparseTrainer`: Trainer that trains sparse models. The mixin serves any other Trainer subclass."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any, Never, Unpack

import torch
from torch import Tensor, nn
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from ..layers.sparse import SparseLayer
from ..layers.sparsify import (
    folded,
    layer_sparsity,
    plain_parameters,
    record_of,
    sparse_layers,
    sparsifier_parameters,
    sparsify,
    sparsity,
)
from ..methods import AutoSparseConfig, LearnedParameters, SparseConfig
from ..reports.trajectory import Trajectory
from . import checkpoint
from ._trainer_compat import prepared_inputs, run_directory, tracker_callbacks
from .arguments import check_arguments, check_bases, check_training_set
from .callbacks import StepsCallback
from .checkpoint_parts import (
    CheckpointPart,
    DeployableModel,
    LossWindow,
    NativeState,
    PartsCallback,
    Plots,
    RunTrajectory,
    Stage,
    load_parts,
    save_parts,
)
from .hub_mixin import HubMixin
from .loss import LossMixin
from .options import Seq2SeqTrainerOptions, TrainerOptions
from .recorder import TrajectoryRecorder
from .target import is_held, target_of
from .trainable import check_trainable

logger = logging.getLogger(__name__)


class AutoSparseMixin(LossMixin, HubMixin):
    """Put before a Trainer class: `class MyTrainer(AutoSparseMixin, SFTTrainer)`.

    Pass everything by keyword, as each Trainer class has an order of its own:
    `MyTrainer(model=model, args=args, sparse_config=config, train_dataset=data)`.

    Args:
        model: a dense model, sparsified in place, or one that `sparsify` already treated.
        args: the Trainer's arguments.
        sparse_config: the configuration of any method; None for the model's own, or for `AutoSparseConfig()` if the
            model is dense.
        **kwargs: everything else the Trainer takes.

    What it changes: thresholds are an optimizer group of their own; the loss is the mean over all tokens of the global
    batch (8 x 1 accumulated = 1 x 8 = 2 processes) for models whose own loss is the mean over the tokens of a batch,
    unless the Trainer class computes a loss of its own; evaluation uses folded weights; every written
    `model.safetensors` is the model that was evaluated; checkpoints are whole or not taken; a non-finite loss stops.
    """

    # Set these to False, on a trainer or in a subclass:
    draws_plots = True  # to save models without pictures
    best_needs_target = True  # to compare, and load as the best, models that have not reached target_sparsity yet
    stops_on_non_finite_loss = True  # to leave a loss that is NaN or infinite to Trainer and logging_nan_inf_filter

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_bases(cls, AutoSparseMixin)

    def __init__(
        self,
        model: nn.Module | None = None,
        args: TrainingArguments | None = None,
        sparse_config: SparseConfig | None = None,
        *others: Never,
        **kwargs: Any,
    ):
        check_arguments(self, model, args, sparse_config, others)
        self._sparse_config = sparse_config
        if model is not None:
            model = self._sparsified(model)
        super().__init__(model=model, args=args, **kwargs)
        check_trainable(self.model)  # the trainer behind may have put PEFT around it
        check_training_set(self.train_dataset, self.sparse_config)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "AutoSparse trainers run in one process or under DDP; FSDP and DeepSpeed are not supported"
            )
        self._prepare_loss()
        self._first_batch: Any = None
        self._recorder = TrajectoryRecorder()
        self._deployable = DeployableModel(self, super()._save)
        self._parts: list[CheckpointPart] = [
            NativeState(self),
            self._deployable,
            RunTrajectory(self._recorder),
            Plots(self),
            LossWindow(self),
        ]
        self._parts_callback = PartsCallback(self._parts)
        self.add_callback(StepsCallback())
        self.add_callback(self._recorder)
        self.add_callback(self._parts_callback)

    @property
    def sparse_config(self) -> SparseConfig:
        """The configuration that the model was sparsified with."""
        if self._sparse_config is None:
            raise ValueError("there is no sparse_config yet: the trainer has no model")
        return self._sparse_config

    def _sparsified(self, model: nn.Module) -> nn.Module:
        record = record_of(model) if sparse_layers(model) else None
        if record is None:
            self._sparse_config = self._sparse_config or AutoSparseConfig()
            return self._tagged(sparsify(model, self._sparse_config))
        if self._sparse_config is not None and self._sparse_config != record.config:
            raise ValueError("sparse_config differs from the one the model was sparsified with: pass None or the same")
        self._sparse_config = record.config
        return self._tagged(model)

    def call_model_init(self, trial: Any = None) -> nn.Module:
        return self._sparsified(super().call_model_init(trial))

    # ---- Optimizer ----

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        check_trainable(self.model)  # once more: what was frozen since the trainer was made
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
            thresholds_group: dict[str, Any] = {"params": thresholds}
            if isinstance(config, LearnedParameters):
                thresholds_group["lr"] = self.args.learning_rate if config.threshold_lr is None else config.threshold_lr
                thresholds_group["weight_decay"] = config.threshold_weight_decay
            optimizer.add_param_group(thresholds_group)
        return optimizer

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        if not isinstance(self.sparse_config, LearnedParameters) or self.sparse_config.clip_thresholds:
            return super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]  # has no annotations
        weights = plain_parameters(model).values()
        return self.accelerator.clip_grad_norm_(list(weights), self.args.max_grad_norm)

    # ---- A training step ----

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor | Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        self._first_batch = inputs if self._recorder.awaits_costs else None
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self._stops and not torch.isfinite(loss):
            if self._has_no_label(inputs) and self._gradients_are_finite():
                return torch.zeros_like(loss)
            raise FloatingPointError(
                f"loss is {loss.item()} at step {self.state.global_step + 1}; first non-finite in:"
                f" {self._first_non_finite(inputs)}. Lower the learning rate, or threshold_lr if it is a threshold"
            )
        return loss

    @property
    def _stops(self) -> bool:
        """Whether a non-finite loss is an error: the scaler of fp16 skips such steps by itself."""
        return self.stops_on_non_finite_loss and self.accelerator.scaler is None

    def _gradients_are_finite(self) -> bool:
        return all(p.grad.isfinite().all() for p in self.model.parameters() if p.grad is not None)

    def compute_loss_context_manager(self) -> contextlib.ExitStack:
        """Wraps the forward of a training step; the first one also measures the layers' MACs for the trajectory."""
        stack = super().compute_loss_context_manager()
        if self._first_batch is not None:
            stack.enter_context(self._recorder.measuring_costs(self.model, self._first_batch))
            self._first_batch = None
        return stack

    @torch.no_grad()
    def _first_non_finite(self, inputs: Any) -> str:
        """Name the layer where the trouble starts: a bad parameter, else the first bad output as the loss is computed
        once more."""
        for name, parameter in self.model.named_parameters():
            if not parameter.isfinite().all():
                return f"parameter {name}"
        bad: list[str] = []

        def watch(name: str) -> Any:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                if isinstance(output, Tensor) and not output.isfinite().all():
                    bad.append(name)

            return hook

        handles = [
            module.register_forward_hook(watch(name))
            for name, module in self.model.named_modules()
            if isinstance(module, SparseLayer) or not list(module.children())
        ]
        try:
            self.compute_loss(self.model, prepared_inputs(self, inputs))
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
        values: dict[str, list[Tensor]] = {}
        for layer in layers.values():
            for key, value in layer.sparsifier.metrics().items():
                values.setdefault(key, []).append(torch.as_tensor(value, dtype=torch.float64))
            values.setdefault("layers_at_guard", []).append(torch.as_tensor(layer.sparsifier.at_guard).double())
        for key, column in values.items():
            stacked = torch.stack([v.reshape(()).to(column[-1].device) for v in column])
            metrics[key] = (stacked.sum() if key == "layers_at_guard" else stacked.mean()).item()
        return metrics

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        metrics = super().evaluate(*args, **kwargs)
        self._report_layers()
        return metrics

    def _report_layers(self) -> None:
        """Send each layer's sparsity and metrics to the trackers (TensorBoard, W&B, ...), and to nobody else: the
        console and the callbacks of users see the events and logs that Trainer gives them."""
        trackers = tracker_callbacks(self)
        if not trackers:
            return
        logs: dict[str, float] = {} if self.state.epoch is None else {"epoch": self.state.epoch}
        fractions = layer_sparsity(self.model)
        for name, layer in sparse_layers(self.model).items():
            logs[f"layers/{name}/sparsity"] = fractions[name]
            for key, value in layer.sparsifier.metrics().items():
                if isinstance(value, Tensor):
                    logs[f"layers/{name}/{key}"] = value.item()
        for tracker in trackers:
            tracker.on_log(
                self.args,
                self.state,
                self.control,
                logs=dict(logs),
                model=self.model,
                processing_class=self.processing_class,
            )

    @property
    def trajectory(self) -> Trajectory | None:
        """How sparsity developed up to now; None before training. `flops(model, inputs, trainer.trajectory)`."""
        return self._recorder.trajectory

    # ---- Evaluation ----

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        with contextlib.ExitStack() as self._evaluation:
            return super().evaluation_loop(*args, **kwargs)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **kwargs: Any,
    ) -> tuple[Any, Tensor | None, Tensor | None]:
        """Folds the weights at the first batch: before it, Trainer casts the model (`bf16_full_eval`) and has a
        schedule-free optimizer put its averaged weights in."""
        self._evaluation.enter_context(folded(self.model))  # does nothing to layers that are folded
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys, **kwargs)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Trainer's, for models with the sparsity that was asked for; others don't count, nor are saved as the best."""
        if is_held(self.model, self.sparse_config):
            return super()._determine_best_metric(metrics, trial)
        if self.best_needs_target:
            self._passed_over = True
            return False
        is_best = super()._determine_best_metric(metrics, trial)
        if is_best:
            logger.warning(
                "the best model up to now, of step %d, has sparsity %.3f, not the target_sparsity of %s: it counts"
                " because best_needs_target is False",
                self.state.global_step,
                sparsity(self.model),
                target_of(self.sparse_config),
            )
        return is_best

    # ---- Checkpoints ----

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if not self.args.should_save:
            return
        directory = Path(output_dir or self.args.output_dir or ".")
        staging = checkpoint.staging_directory(directory)
        self._deployable.gathered = state_dict
        save_parts(self._parts, Stage.MODEL_SAVED, staging)
        checkpoint.publish(staging, directory)
        if not checkpoint.is_checkpoint(directory):
            save_parts(self._parts, Stage.MODEL_PUBLISHED, directory)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self.args.should_save:
            directory = Path(run_directory(self, trial)) / f"checkpoint-{self.state.global_step}"
            directory.mkdir(parents=True, exist_ok=True)
            checkpoint.invalidate(directory)
            save_parts(self._parts, Stage.CHECKPOINT_BEGINS, directory)
        super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        """The last thing Trainer writes before `trainer_state.json`: the moment to add ours and seal the checkpoint."""
        super()._save_rng_state(output_dir)
        save_parts(self._parts, Stage.CHECKPOINT_ENDS, output_dir)
        self.accelerator.wait_for_everyone()  # every process has written its part
        if self.args.should_save:
            checkpoint.write_manifest(output_dir)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        path = self._checkpoint_to_resume(resume_from_checkpoint)
        self._parts_callback.resumes_from = path
        self._passed_over = False
        output = super().train(path, *args, **kwargs)
        if self._passed_over and self.args.load_best_model_at_end and self.state.best_model_checkpoint is None:
            logger.warning(
                "no best model was loaded: none of those that were evaluated had the target_sparsity of %s. Evaluate"
                " later or more often, or set best_needs_target = False",
                target_of(self.sparse_config),
            )
        return output

    def _checkpoint_to_resume(self, wanted: str | bool | None) -> str | None:
        """A whole checkpoint: the one that was named, or for True the newest one of the run."""
        if not wanted:
            return None
        if wanted is not True:
            checkpoint.check_whole(wanted)
            return wanted
        path, passed_over = checkpoint.last_whole_checkpoint(self.args.output_dir or ".")
        for reason in passed_over:
            logger.warning("not resuming from a checkpoint that is not whole: %s", reason)
        if path is None:
            raise ValueError(f"resume_from_checkpoint=True, but {self.args.output_dir} holds no whole checkpoint")
        return str(path)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        # Not Trainer's own loading: model.safetensors holds thresholded weights, partly under other names.
        load_parts(self._parts, [Stage.CHECKPOINT_BEGINS], resume_from_checkpoint)

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        assert best is not None  # Trainer calls this where there is one
        logger.info("loading the best model from %s", best)
        load_parts(self._parts, [Stage.CHECKPOINT_BEGINS], best)


class AutoSparseTrainer(AutoSparseMixin, Trainer):
    """`AutoSparseTrainer(model, args, sparse_config)`; everything else of Trainer by keyword."""

    def __init__(
        self,
        model: nn.Module | None = None,
        args: TrainingArguments | None = None,
        sparse_config: SparseConfig | None = None,
        *others: Never,
        **kwargs: Unpack[TrainerOptions],
    ):
        super().__init__(model, args, sparse_config, *others, **kwargs)


class AutoSparseSeq2SeqTrainer(AutoSparseMixin, Seq2SeqTrainer):
    """`AutoSparseSeq2SeqTrainer(model, args, sparse_config)`; everything else of Seq2SeqTrainer by keyword."""

    def __init__(
        self,
        model: nn.Module | None = None,
        args: Seq2SeqTrainingArguments | None = None,
        sparse_config: SparseConfig | None = None,
        *others: Never,
        **kwargs: Unpack[Seq2SeqTrainerOptions],
    ):
        super().__init__(model, args, sparse_config, *others, **kwargs)

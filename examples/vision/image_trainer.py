"""Trainer for images, dense and sparse: its batches, its loss, its accuracy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch.nn.functional as F
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, Sampler
from transformers import EvalPrediction, Trainer

from examples.vision.image_data import IGNORED_LABEL
from hf_autosparse import AutoSparseMixin
from hf_autosparse.metrics.top_k import TopKAccuracy, ranked_classes

TOP = (1, 5)


class ShardedBatches(Sampler[list[int]]):
    """One process's batches of `epoch * length + index`, every index once an epoch over all processes together.

    The order of an epoch depends on (seed, epoch) alone, and the n-th global batch is the same images whatever the
    number of processes that share it. The last one is smaller and dealt out evenly; images that are fewer than the
    processes are left out of that epoch.

    Raises:
        ValueError: fewer images than processes.
    """

    def __init__(self, length: int, batch_size: int, seed: int, num_processes: int = 1, process_index: int = 0):
        if length < num_processes:
            raise ValueError(f"{length} image(s) cannot be dealt out to {num_processes} processes")
        self.batch_size, self.epoch = batch_size, 0
        self._length, self._seed = length, seed
        self._processes, self._process = num_processes, process_index

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(self._length, self.batch_size * self._processes)
        return whole + (rest >= self._processes)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng((self._seed, self.epoch)).permutation(self._length) + self.epoch * self._length
        together = self.batch_size * self._processes
        for batch in range(len(self)):
            share = np.array_split(order[batch * together : (batch + 1) * together], self._processes)
            yield share[self._process].tolist()


class ClassificationLoss:
    """Cross entropy with label smoothing, the mean over the images of the global batch (`compute_loss_func`).

    Trainer's own loss is right for some models of transformers only where a step has several processes or accumulated
    batches (ResNet and MobileNetV1 come out too large by their number).
    """

    def __init__(self, label_smoothing: float):
        self.label_smoothing = label_smoothing

    def __call__(self, outputs, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        logits = outputs["logits"].float()
        count = labels.ne(IGNORED_LABEL).sum() if num_items_in_batch is None else num_items_in_batch
        options = {"ignore_index": IGNORED_LABEL, "label_smoothing": self.label_smoothing}
        return F.cross_entropy(logits, labels, reduction="sum", **options) / count


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Top-1 and top-5 accuracy (`compute_metrics`) of what `ranked_classes` gave, unreadable images left out."""
    readable = prediction.label_ids != IGNORED_LABEL
    metric = TopKAccuracy(keep_in_memory=True)
    return metric.compute(
        predictions=prediction.predictions[readable], references=prediction.label_ids[readable], k=TOP
    )


class ImageTrainerMixin:
    """Before a Trainer: batches of `Images` or `StreamedImages`, one loss and one accuracy for dense and sparse runs.

    Args:
        decay_everything: weight decay on every parameter but the thresholds, biases and normalisation included.
    """

    def __init__(self, *args, decay_everything: bool = False, **kwargs):
        self._decay_everything = decay_everything
        super().__init__(
            *args,
            compute_metrics=accuracy,
            preprocess_logits_for_metrics=lambda logits, labels: ranked_classes(logits, max(TOP)),
            **kwargs,
        )

    def get_train_dataloader(self) -> DataLoader:
        args, accelerator, dataset = self.args, self.accelerator, self.train_dataset
        if isinstance(dataset, IterableDataset):
            batches = {"batch_size": args.train_batch_size}
        else:
            seed = args.seed if args.data_seed is None else args.data_seed
            processes = accelerator.num_processes, accelerator.process_index
            batches = {"batch_sampler": ShardedBatches(len(dataset), args.train_batch_size, seed, *processes)}
        loader = DataLoader(
            dataset,
            **batches,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
        )
        # The batches are already this process's own: accelerate must not deal them out a second time.
        return prepare_data_loader(
            loader,
            device=accelerator.device,
            num_processes=1,
            process_index=0,
            put_on_device=accelerator.device_placement,
            rng_types=None,
            even_batches=False,
            non_blocking=accelerator.non_blocking,
        )

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        if self._decay_everything:
            return [name for name, _ in model.named_parameters()]
        return super().get_decay_parameter_names(model)

    def evaluation_loop(self, *args, **kwargs):
        """All processes evaluate the model that will be saved: with the BatchNorm statistics of the first one.

        Each process gathers its own while training; DDP hands the first one's on only at the next training step.
        """
        if self.accelerator.num_processes > 1:
            for module in self.accelerator.unwrap_model(self.model).modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    for buffer in module.buffers():
                        buffer.copy_(broadcast(buffer.clone()))
        return super().evaluation_loop(*args, **kwargs)


class DenseTrainer(ImageTrainerMixin, Trainer):
    """Trainer for images."""


class SparseTrainer(AutoSparseMixin, DenseTrainer):
    """The same, sparse: the mixin is all it takes."""


def scaled_learning_rate(learning_rate: float, global_batch: int, lr_batch_size: int | None) -> float:
    """Linear scaling (Goyal et al. 2017): times `global_batch / lr_batch_size`; None for no scaling."""
    return learning_rate if lr_batch_size is None else learning_rate * global_batch / lr_batch_size

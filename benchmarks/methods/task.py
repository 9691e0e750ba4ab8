"""The task that methods are compared on: a small ResNet on small images, one run of it, and where results are kept."""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from hf_autosparse import AutoSparseTrainer, SparseConfig, flops, sparsity

ANNEALED = {"alpha_init": 0.75, "alpha_schedule": "sigmoid-cosine", "alpha_update": "step"}  # Gradient Annealing


def images(source: str, most: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """At most `most` training images in [-1, 1] with labels, all test images with labels.

    `source` is "digits" or the directory of Fashion-MNIST.
    """
    if source == "digits":
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(labels))
        pixels = torch.tensor(pixels[order], dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
        pixels = torch.nn.functional.interpolate(pixels, scale_factor=4)
        labels = torch.tensor(labels[order])
        return pixels[:1400][:most], labels[:1400][:most], pixels[1400:], labels[1400:]

    def read(name: str, header: int) -> torch.Tensor:
        with gzip.open(Path(source) / name) as file:
            return torch.frombuffer(bytearray(file.read()[header:]), dtype=torch.uint8)

    parts = []
    for part, count in (("train", most), ("t10k", None)):
        parts.append(read(f"{part}-images-idx3-ubyte.gz", 16).view(-1, 1, 28, 28)[:count].float() / 127.5 - 1)
        parts.append(read(f"{part}-labels-idx1-ubyte.gz", 8)[:count].long())
    return tuple(parts)


def train(
    name: str,
    settings: dict[str, Any],
    seed: int,
    recipe: dict[str, Any],
    callbacks: Sequence[TrainerCallback] = (),
) -> dict[str, Any]:
    """One run, from scratch, on one thread: accuracy on the test images, sparsity, theoretical FLOPs, seconds a step.

    `settings` are what `SparseConfig.from_dict` takes, empty for a dense run; `recipe` is from `recipe_of`.
    """
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    pixels, labels, test_pixels, test_labels = images(recipe["data"], recipe["images"])
    train_set = [{"pixel_values": x, "labels": y} for x, y in zip(pixels, labels, strict=True)]
    test_set = [{"pixel_values": x, "labels": y} for x, y in zip(test_pixels, test_labels, strict=True)]
    set_seed(seed)
    sizes = {"embedding_size": 16, "hidden_sizes": [16, 32, 64], "depths": [2, 2, 2], "layer_type": "basic"}
    model = ResNetForImageClassification(ResNetConfig(num_channels=1, num_labels=10, **sizes))
    with tempfile.TemporaryDirectory() as directory:
        args = TrainingArguments(
            directory,
            num_train_epochs=recipe["epochs"],
            per_device_train_batch_size=recipe["batch"],
            per_device_eval_batch_size=256,
            learning_rate=0.1,
            weight_decay=5e-4,
            optim="sgd",
            optim_args="momentum=0.9",
            lr_scheduler_type="cosine",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
            seed=seed,
        )
        measure = {"compute_metrics": lambda p: {"accuracy": float((p.predictions.argmax(1) == p.label_ids).mean())}}
        data = {"train_dataset": train_set, "eval_dataset": test_set, "callbacks": list(callbacks)} | measure
        if settings:
            trainer = AutoSparseTrainer(model, args, SparseConfig.from_dict(settings), **data)
        else:
            trainer = Trainer(model, args, **data)
        done = trainer.train()
        result = {"name": name, "seed": seed, "accuracy": trainer.evaluate()["eval_accuracy"]}
    result["seconds_per_step"] = done.metrics["train_runtime"] / done.global_step
    if settings:
        report = flops(model, {"pixel_values": test_pixels[:1]}, trainer.trajectory)
        result |= {"sparsity": sparsity(model), "test_flops": report.inference_fraction}
        result["train_flops"] = report.training_fraction
    return result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", default="digits", help='"digits" (of scikit-learn) or the folder of Fashion-MNIST')
    parser.add_argument("--output", type=Path, required=True, help="directory of the runs and of the results")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=10_000, help="training images, at most")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--only", nargs="+", help="names that begin with one of these")


def recipe_of(parser: argparse.ArgumentParser, args: argparse.Namespace) -> dict[str, Any]:
    """What all runs in the output directory share. Exits where it holds runs of another recipe."""
    recipe = {"data": args.data, "images": args.images, "epochs": args.epochs, "batch": args.batch}
    note = args.output / "recipe.json"
    described = recipe | {"data": Path(args.data).name}
    if note.exists() and json.loads(note.read_text()) != described:
        parser.error(f"{args.output} holds runs of another recipe, {note.read_text().strip()}: choose another --output")
    args.output.mkdir(parents=True, exist_ok=True)
    write(note, json.dumps(described) + "\n")
    return recipe


def steps_of(recipe: dict[str, Any]) -> int:
    """Optimizer steps of a run."""
    return recipe["epochs"] * -(-len(images(recipe["data"], recipe["images"])[1]) // recipe["batch"])


def run_missing(
    run: Callable[..., dict[str, Any]], tasks: dict[str, tuple[Any, ...]], args: argparse.Namespace
) -> list[dict[str, Any]]:
    """`run(name, settings, seed, recipe)` for every task without a file in the output directory; all results there.

    Args:
        tasks: file name without ending -> arguments, in the order in which they are run.
    """
    missing = {args.output / f"{name}.json": task for name, task in tasks.items()}
    missing = {
        path: task
        for path, task in missing.items()
        if not path.exists() and (not args.only or task[0].startswith(tuple(args.only)))
    }
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(run, *task): path for path, task in missing.items()}
        for future in as_completed(futures):
            result = future.result()
            write(futures[future], json.dumps(result, indent=1) + "\n")
            print(json.dumps({key: value for key, value in result.items() if key != "approach"}), flush=True)
    return [json.loads(path.read_text()) for path in sorted(args.output.glob("*-[0-9].json"))]


def write(path: Path, text: str) -> None:
    """The file as a whole, or not at all."""
    draft = path.with_suffix(".tmp")
    draft.write_text(text)
    os.replace(draft, path)

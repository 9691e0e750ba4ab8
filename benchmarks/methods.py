"""Every method on one small image task, under one harness: accuracy, sparsity, theoretical FLOPs, measured seconds.

    python benchmarks/methods.py --data digits --output runs/methods
    python benchmarks/methods.py --data ../shared/data/fashion-mnist --output runs/methods --jobs 2

A ResNet of 15 convolutions and 176 k parameters, SGD with a cosine schedule, three seeds. Nothing is tuned to a method:
all are asked for the same sparsity and keep their own defaults otherwise, but for a change of mask every 20th of the
run at the latest, and Gradient Annealing by step, as the runs have few epochs. Each run is a file of its own in the output directory, written when it is done: run the command again to go on.
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import os
import re
import statistics
import tempfile
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

ANNEALED = {"alpha_init": 0.75, "alpha_schedule": "sigmoid-cosine", "alpha_update": "step"}  # Gradient Annealing
BUDGETED: dict[str, dict[str, Any]] = {
    "gmp": {"method": "gmp"},
    "set": {"method": "set"},
    "rigl": {"method": "rigl"},
    "rigl (erk)": {"method": "rigl", "sparsity_distribution": "erk"},
    "itop": {"method": "itop"},
    "snfs": {"method": "snfs"},
    "mest (EM)": {"method": "mest"},
    "mest (EM&S)": {"method": "mest", "options": {"soft": True, "mutation": 0.5}},
    "topkast 50 % backward": {"method": "topkast", "backward_sparsity": 0.5},
    "topkast": {"method": "topkast"},
    "topkast + powerprop": {"method": "topkast", "options": {"power": 2.0}},
    "topkast + GA": {"method": "topkast"} | ANNEALED,
    "swat": {"method": "swat"},
    "optg": {"method": "optg"},
}
N_OF_16 = {0.8: 3, 0.9: 2}  # the nearest: 81.25 % and 87.5 %
LEARNED = {"autosparse": ANNEALED, "str": {}, "dst": {}, "ltp": {}, "scl": {}, "continuous": {}}


def runs(sparsities: list[float], steps: int) -> dict[str, dict[str, Any]]:
    """Name -> settings of AutoSparseConfig; empty for the dense run."""
    every = max(1, min(100, steps // 20))
    found: dict[str, dict[str, Any]] = {"dense": {}}
    for sparsity in sparsities:
        for name, settings in BUDGETED.items():
            options = settings.get("options", {})
            if settings["method"] not in ("optg", "swat"):
                options = {"every": every} | options
            found[f"{name} at {sparsity}"] = settings | {"target_sparsity": sparsity, "options": options}
        for name, alpha in (("nm", {}), ("nm + GA", ANNEALED)):
            if sparsity in N_OF_16:
                found[f"{name} {N_OF_16[sparsity]}:16"] = {
                    "method": "nm",
                    "options": {"n": N_OF_16[sparsity], "m": 16},
                } | alpha
        for name, settings in LEARNED.items():
            found[f"{name} at {sparsity}"] = {"method": name, "target_sparsity": sparsity} | settings
    return found


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


def train(name: str, settings: dict[str, Any], seed: int, recipe: dict[str, Any]) -> dict[str, Any]:
    """One run, from scratch."""
    from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments, set_seed

    from hf_autosparse import AutoSparseConfig, AutoSparseTrainer, flops, sparsity

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
        data = {"train_dataset": train_set, "eval_dataset": test_set} | measure
        if settings:
            trainer = AutoSparseTrainer(model, args, AutoSparseConfig(**settings), **data)
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


def write(path: Path, text: str) -> None:
    draft = path.with_suffix(".tmp")
    draft.write_text(text)
    os.replace(draft, path)


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: mean over seeds, and the deviation of the accuracy."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        groups[result["name"]].append(result)
    lines = [
        "| run | seeds | accuracy | deviation | sparsity | Test F (theory) | Train F (theory) | measured s/step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, group in sorted(groups.items(), key=lambda item: -statistics.mean(r["accuracy"] for r in item[1])):

        def mean(key: str, digits: int, group=group) -> str:
            return f"{statistics.mean(r[key] for r in group):.{digits}f}" if key in group[0] else "-"

        deviation = f"{statistics.stdev(r['accuracy'] for r in group):.4f}" if len(group) > 1 else "-"
        figures = [mean("sparsity", 4), mean("test_flops", 3), mean("train_flops", 3), mean("seconds_per_step", 4)]
        lines.append(f"| {name} | {len(group)} | {mean('accuracy', 4)} | {deviation} | {' | '.join(figures)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", default="digits", help='"digits" (of scikit-learn) or the folder of Fashion-MNIST')
    parser.add_argument("--output", type=Path, required=True, help="directory of the runs and of results.md")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.8, 0.9])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=10_000, help="training images, at most")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--only", nargs="+", help="names that begin with one of these")
    args = parser.parse_args()
    steps = args.epochs * -(-len(images(args.data, args.images)[1]) // args.batch)
    args.output.mkdir(parents=True, exist_ok=True)
    recipe = {"data": args.data, "images": args.images, "epochs": args.epochs, "batch": args.batch}
    note = args.output / "recipe.json"
    described = recipe | {"data": Path(args.data).name}
    if note.exists() and json.loads(note.read_text()) != described:
        parser.error(f"{args.output} holds runs of another recipe, {note.read_text().strip()}: choose another --output")
    write(note, json.dumps(described) + "\n")
    pending = {}
    for seed in range(args.seeds):  # every method has a first run before one has a second
        for name, settings in runs(args.sparsity, steps).items():
            path = args.output / f"{re.sub(r'[^a-z0-9.]+', '_', name.lower())}-{seed}.json"
            if not path.exists() and (not args.only or name.startswith(tuple(args.only))):
                pending[path] = (name, settings, seed, recipe)
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(train, *task): path for path, task in pending.items()}
        for future in as_completed(futures):
            result = future.result()
            write(futures[future], json.dumps(result, indent=1) + "\n")
            print(json.dumps(result), flush=True)
    results = [json.loads(path.read_text()) for path in sorted(args.output.glob("*-*.json"))]
    write(args.output / "results.md", table(results))
    print(table(results))


if __name__ == "__main__":
    main()

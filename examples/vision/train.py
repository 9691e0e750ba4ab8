"""Train an image classifier, sparse or dense, and measure its top-1 and top-5 accuracy.

    python -m examples.vision.train --config examples/vision/configs/digits.yaml
    accelerate launch -m examples.vision.train --config examples/vision/configs/resnet50.yaml

A killed run goes on exactly where its last checkpoint stands with --resume. Any value of the recipe can be changed:
--set training.max_steps=100 --set data.path=/data/imagenet
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import BitImageProcessor, TrainingArguments, set_seed

from examples.common.runs import check_output, environment, parse_options
from examples.vision.corrupt_images import CorruptImages
from examples.vision.image_data import DataConfig, ImageCollator, load_split
from examples.vision.image_model import CHANNELS, build_model, depthwise_layers
from examples.vision.image_recipe import load_recipe
from examples.vision.image_trainer import ClassificationLoss, DenseTrainer, SparseTrainer, scaled_learning_rate
from hf_autosparse import SparseConfig, finalize, flops, sparsity_report
from hf_autosparse.methods import LearnedParameters


def main(argv: list[str] | None = None) -> None:
    options = parse_options(__doc__, argv)
    recipe = load_recipe(options.config, options.set)
    result = train(recipe, resume=options.resume)
    if result["process"] == 0:
        print(json.dumps({"recipe": options.config, "set": options.set} | result, indent=2))


def train(recipe: dict[str, Any], *, resume: bool = False) -> dict[str, Any]:
    """Train by a recipe, save the model, predict the validation set with it, and return the figures.

    Raises:
        FileExistsError: `output_dir` holds an earlier run, and `resume` is False.
    """
    output = Path(recipe["output_dir"])
    check_output(output, resume=resume)
    arguments = TrainingArguments(output_dir=str(output), seed=recipe["seed"], **recipe["training"])
    output.mkdir(parents=True, exist_ok=True)
    global_batch = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    scale = scaled_learning_rate(1.0, global_batch, recipe["lr_batch_size"])
    if arguments.process_index == 0:
        print(
            f"global batch {global_batch} = {arguments.world_size} process(es) x {arguments.train_batch_size} x"
            f" {arguments.gradient_accumulation_steps} accumulated; learning rate {arguments.learning_rate} x {scale:g}"
            f" = {arguments.learning_rate * scale:g}"
        )
    arguments.learning_rate *= scale

    # Data: the main process downloads or unpacks, the others then read the same files.
    data = DataConfig(**recipe["data"])
    corrupt = CorruptImages(data.max_corrupt, output / "corrupt_images.txt")
    shares = {
        "seed": recipe["seed"],
        "batch_size": arguments.train_batch_size,
        "num_processes": arguments.world_size,
        "process_index": arguments.process_index,
    }
    with arguments.main_process_first(local=False, desc="preparing the data"):
        training, validation = (load_split(data, split, corrupt, **shares) for split in ("train", "validation"))
    if training.classes != validation.classes:
        differ = sorted(set(training.classes) ^ set(validation.classes))
        raise ValueError(f"the classes of {data.train!r} and {data.validation!r} differ: {differ or 'in order'}")

    # Model.
    set_seed(recipe["seed"])
    model = build_model(recipe["model"], training.classes)

    # Training. The time includes evaluation and saving.
    sparse = recipe["sparse"]
    shared = {
        "decay_everything": recipe["decay_everything"],
        "train_dataset": training,
        "eval_dataset": validation,
        "data_collator": ImageCollator(data.mean, data.std, recipe["model"].get("channels_last", False)),
        "processing_class": image_processor(data),
        "compute_loss_func": ClassificationLoss(arguments.label_smoothing_factor),
    }
    if sparse is None:
        trainer = DenseTrainer(model, arguments, **shared)
    else:
        config = SparseConfig.from_dict(sparse)
        if isinstance(config, LearnedParameters) and config.threshold_lr is not None:
            config = replace(config, threshold_lr=config.threshold_lr * scale)
        if recipe["depthwise"] == "dense":
            config = replace(config, dense_modules=[*config.dense_modules, *depthwise_layers(model)])
        trainer = SparseTrainer(model, arguments, config, **shared)
    speed = trainer.train(resume_from_checkpoint=resume or None).metrics
    trainer.save_model()

    # Result: the model that was saved, on the validation set.
    prediction = trainer.predict(validation)
    model = trainer.accelerator.unwrap_model(trainer.model)
    result: dict[str, Any] = {"seed": recipe["seed"], "sparse": sparse, "depthwise": recipe["depthwise"]}
    if sparse is not None:
        report = sparsity_report(model)
        result |= {"sparsity": report.sparsity, "sparse_weights": report.weights}
        image = torch.zeros(1, CHANNELS, data.size, data.size)
        counted = flops(model, {"pixel_values": image}, trainer.trajectory)
        result |= {"test_flops": counted.inference_fraction, "train_flops": counted.training_fraction}
        finalize(model)
    result |= {
        "top1": prediction.metrics["test_top1"],
        "top5": prediction.metrics["test_top5"],
        "loss": prediction.metrics["test_loss"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "train_images_per_second": speed["train_steps_per_second"] * global_batch,
        "train_seconds": speed["train_runtime"],
        "seconds_per_step": 1 / speed["train_steps_per_second"],
        "epochs": trainer.state.epoch,
        "steps": trainer.state.global_step,
        "corrupt_images": len(corrupt.names()),
        "environment": environment(),
    }
    if trainer.is_world_process_zero():
        names = [training.classes[label] for label in prediction.predictions[:, 0]]
        (output / "predictions.txt").write_text("".join(f"{name}\n" for name in names))
        (output / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    return result | {"process": arguments.process_index}


def image_processor(data: DataConfig) -> BitImageProcessor:
    """What is saved beside the model, so that `pipeline("image-classification")` prepares images as validation does."""
    return BitImageProcessor(
        size={"shortest_edge": data.resize or data.size},
        crop_size={"height": data.size, "width": data.size},
        resample=2,  # bilinear
        image_mean=list(data.mean),
        image_std=list(data.std),
        do_convert_rgb=True,
    )


if __name__ == "__main__":
    main(sys.argv[1:])

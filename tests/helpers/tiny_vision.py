"""Tiny recipes and models for the tests."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from examples.vision.image_recipe import load_recipe

CONFIGS = Path(__file__).resolve().parents[2] / "examples" / "vision" / "configs"
TINY = [
    "data.max_train_images=150",
    "training.max_steps=8",
    "training.per_device_eval_batch_size=32",
    "training.use_cpu=true",
    "training.disable_tqdm=true",
    "training.logging_steps=1",
]
MODELS = {
    "cifar_resnet": 'model={"type": "cifar_resnet", "config": {"embedding_size": 4, "hidden_sizes": [8, 8],'
    ' "depths": [1, 1], "layer_type": "basic"}}',
    "resnet": 'model={"type": "resnet", "config": {"embedding_size": 4, "hidden_sizes": [8, 8], "depths": [1, 1]}}',
    "mobilenet_v1": 'model={"type": "mobilenet_v1", "batch_norm_momentum": 0.1,'
    ' "config": {"depth_multiplier": 0.25, "classifier_dropout_prob": 0.0}}',
    "vit": 'model={"type": "vit", "config": {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,'
    ' "intermediate_size": 12, "image_size": 16, "patch_size": 8, "hidden_dropout_prob": 0.0}}',
    "convnext": 'model={"type": "convnext", "config": {"hidden_sizes": [4, 8], "depths": [1, 1], "num_stages": 2,'
    ' "patch_size": 4}}',
}


def tiny_recipe(output: str | Path, model: str = "cifar_resnet", *changes: str) -> dict[str, Any]:
    """The digits recipe with a tiny model."""
    return load_recipe(CONFIGS / "digits.yaml", [*TINY, *changes, f"output_dir={output}", MODELS[model]])


class StopAt(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step >= self.step


def recording(example, stop_at: int = 10**9) -> list:
    """Make the example's trainers stop at a step and note themselves in the list returned, with their last weights."""
    trainers: list = []
    for name in ("SparseTrainer", "DenseTrainer"):

        class Recording(getattr(example, name)):
            def train(self, **kwargs):
                trainers.append(self)
                self.add_callback(StopAt(stop_at))
                output = super().train(**kwargs)
                self.final = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
                return output

        setattr(example, name, Recording)
    return trainers


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def images(count: int, size: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))

"""The model of a recipe: any image classifier of transformers, from a configuration or pretrained."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedModel

from examples.vision import cifar_resnet  # noqa: F401  registers its model type

FIELDS = {"type", "config", "from_pretrained", "new_classifier", "init", "batch_norm_momentum", "channels_last"}
INITS = ("transformers", "kaiming_fan_in")
CHANNELS = 3  # what ImageCollator makes of every image


def build_model(section: dict[str, Any], classes: list[str]) -> PreTrainedModel:
    """The model of the recipe's `model` section for these classes.

    - `type` and `config`: a model type of transformers ("resnet", "mobilenet_v1", "vit", "convnext", ...) or
      "cifar_resnet", and the fields of its configuration: random weights.
    - or `from_pretrained`: a name on the Hub or a folder; `new_classifier: true` gives it a new last layer.
    - `init`: "transformers" (the model's own) or "kaiming_fan_in": every convolution from N(0, 2 / fan-in), as in STR.
    - `batch_norm_momentum`: of all BatchNorm layers; null keeps the model's own. Transformers' MobileNetV1 has 0.9997,
      which in torch makes the statistics those of the last batch; TensorFlow, where it is from, means 1 - 0.9997.
    - `channels_last`: memory format of the convolutions.

    Raises:
        ValueError: unknown or contradictory fields, or a model for another number of classes or colours.
    """
    unknown = section.keys() - FIELDS
    if unknown:
        raise ValueError(f"model: unknown field(s) {sorted(unknown)}; allowed: {sorted(FIELDS)}")
    if (section.get("type") is None) == (section.get("from_pretrained") is None):
        raise ValueError("model: give either type (and config) or from_pretrained")
    names = {"id2label": dict(enumerate(classes)), "label2id": {name: i for i, name in enumerate(classes)}}
    if section.get("type") is not None:
        model = _from_config(section, classes, names)
    else:
        model = _pretrained(section, classes, names)
    channels = getattr(model.config, "num_channels", CHANNELS)  # timm's configuration has none
    if channels != CHANNELS:
        raise ValueError(
            f"model: config.num_channels = {channels}, but images come as {CHANNELS} colours, grey ones too (the one is"
            " repeated): leave it out, or give a model pretrained on colours"
        )
    init = section.get("init", "transformers")
    if init not in INITS:
        raise ValueError(f"model.init = {init!r} is not one of {INITS}")
    if init == "kaiming_fan_in":
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
    if section.get("batch_norm_momentum") is not None:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = section["batch_norm_momentum"]
    return model.to(memory_format=torch.channels_last) if section.get("channels_last") else model


def depthwise_layers(model: nn.Module) -> list[str]:
    """Names of the convolutions in which each output channel sees one of several input channels."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and module.groups > 1 and module.groups == module.in_channels
    ]


def _from_config(section: dict[str, Any], classes: list[str], names: dict[str, Any]) -> PreTrainedModel:
    values = section.get("config") or {}
    wanted = values.get("num_labels", len(classes))
    if wanted != len(classes):
        raise ValueError(f"model.config.num_labels = {wanted}, but the data has {len(classes)} classes: leave it out")
    config = AutoConfig.for_model(section["type"], **values, **names)
    return AutoModelForImageClassification.from_config(config)


def _pretrained(section: dict[str, Any], classes: list[str], names: dict[str, Any]) -> PreTrainedModel:
    name, new = section["from_pretrained"], section.get("new_classifier", False)
    config = AutoConfig.from_pretrained(name)
    if config.num_labels != len(classes) and not new:
        raise ValueError(
            f"model.from_pretrained = {name!r} knows {config.num_labels} classes, but the data has {len(classes)}: set"
            " model.new_classifier: true for a new last layer, or give other data"
        )
    return AutoModelForImageClassification.from_pretrained(name, ignore_mismatched_sizes=new, **names)

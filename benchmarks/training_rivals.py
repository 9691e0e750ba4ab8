"""Who else trains with zeros in torch: a model's layers treated by each, at a sparsity, for training_step.py."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from benchmarks.decode import layers_to_prune


class Naive(nn.Linear):
    """The soft threshold as it is written down, by autograd: what STR's published layer does."""

    def forward(self, input: Tensor) -> Tensor:
        weight = torch.sign(self.weight) * torch.relu(self.weight.abs() - torch.sigmoid(self.threshold))
        return F.linear(input, weight, self.bias)


class Pruned(nn.Linear):
    """Its weight goes through `pruner`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.pruner(self.weight), self.bias)


def _logit(weight: Tensor, sparsity: float) -> Tensor:
    """s of the threshold sigmoid(s) that makes so many zeros."""
    return torch.logit(weight.detach().abs().flatten().kthvalue(max(1, round(sparsity * weight.numel()))).values)


def naive(model: nn.Module, sparsity: float) -> nn.Module:
    for layer in layers_to_prune(model):
        layer.__class__ = Naive
        layer.threshold = nn.Parameter(_logit(layer.weight, sparsity))
    return model


def torch_prune(model: nn.Module, sparsity: float) -> nn.Module:
    for layer in layers_to_prune(model):
        prune.l1_unstructured(layer, "weight", sparsity)
    return model


def pquantml(model: nn.Module, sparsity: float) -> nn.Module:
    """PQuantML's AutoSparse layer: `pip install pquant-ml`."""
    os.environ.setdefault("KERAS_BACKEND", "torch")  # it imports Keras, whose default is TensorFlow
    from pquant.core.torch.pruning_methods.autosparse import AutoSparse

    for layer in layers_to_prune(model):
        settings = {"alpha": 0.5, "backward_sparsity": False, "threshold_type": "layerwise"}
        settings["threshold_init"] = float(_logit(layer.weight, sparsity))
        layer.pruner = AutoSparse(SimpleNamespace(pruning_parameters=SimpleNamespace(**settings)), "linear")
        layer.pruner.build(layer.weight.shape)
        layer.pruner._is_pretraining = layer.pruner.is_pretraining = False
        layer.__class__ = Pruned
    return model


def rivals() -> tuple[dict[str, Callable[[nn.Module, float], nn.Module]], dict[str, str]]:
    """Name -> what treats a model in place; and for what is missing the reason."""
    there = {"naive STR layers": naive, "torch.nn.utils.prune": torch_prune}
    try:
        there[f"PQuantML {importlib.metadata.version('pquant-ml')}"] = pquantml
    except importlib.metadata.PackageNotFoundError:
        return there, {"PQuantML": "not installed"}
    return there, {}

"""Layers and steps small enough to check a method's update rule by hand."""

import torch
from torch import Tensor, nn

from hf_autosparse.layers.sparse import SparseLayer
from hf_autosparse.methods import Progress

T, F = True, False


def linear(rows: list[list[float]]) -> nn.Linear:
    """A layer without bias that has these weights, a row for each output."""
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    layer.weight.data = torch.tensor(rows)
    return layer


def step(number: int, of: int = 100) -> Progress:
    return Progress(0.0, 1.0, number, of)


@torch.no_grad()
def update(layer: SparseLayer, number: int, of: int = 100) -> Tensor | None:
    """What `end_step` returns after this step."""
    return layer.sparsifier.end_step(layer.weight, step(number, of))

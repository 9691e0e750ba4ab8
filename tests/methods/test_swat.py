"""SWAT's gradients, by hand."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_autosparse import SWATConfig, TopKASTConfig, sparsify
from update_rules import linear, update


def test_swat_learns_from_the_largest_activations_of_each_example():
    layer = sparsify(linear([[1.0, 2.0]]), SWATConfig(first_last="none", target_sparsity=0.5))
    inputs = torch.tensor([[3.0, 1.0], [1.0, -4.0]], requires_grad=True)
    out = layer(inputs)
    assert out.tolist() == [[2], [-8]]
    out.sum().backward()
    assert layer.weight.grad.tolist() == [[3, -4]] and inputs.grad.tolist() == [[0, 2], [0, 2]]
    assert layer.sparsifier.gradient_count(layer.weight) == 1
    layer.weight.data = torch.tensor([[2.0, 1.0]])
    for number, expected in ((4, [[0, 1]]), (5, [[2, 0]])):
        update(layer, number)
        assert layer.sparse_weight().tolist() == expected


@pytest.mark.parametrize("make", [lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), lambda: Conv1D(6, 4)])
def test_swat_with_dense_activations_is_topkast(make):
    inputs = torch.randn(2, 4, 5, 5) if make().weight.dim() == 4 else torch.randn(2, 3, 4)
    gradients = []
    shared = {"first_last": "none", "target_sparsity": 0.6}
    for config in (SWATConfig(**shared, activation_sparsity=0.0), TopKASTConfig(**shared)):
        torch.manual_seed(0)
        layer = sparsify(make(), config)
        layer(inputs).square().sum().backward()
        gradients.append((layer.weight.grad, layer.bias.grad))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))

"""STR is AutoSparse with alpha 0."""

import torch
from torch import nn

from hf_autosparse import AutoSparseConfig, STRConfig, sparsify


def test_str_is_autosparse_at_alpha_0():
    inputs = torch.randn(4, 6)
    gradients = []
    for config in (STRConfig(first_last="none"), AutoSparseConfig(first_last="none", alpha_init=0.0)):
        torch.manual_seed(1)
        layer = sparsify(nn.Linear(6, 5), config)
        layer(inputs).square().sum().backward()
        gradients.append((layer.weight.grad, layer.sparsifier.threshold.grad))
    assert torch.equal(gradients[0][0], gradients[1][0]) and torch.equal(gradients[0][1], gradients[1][1])

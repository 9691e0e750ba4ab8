"""ITOP's update rule, by hand."""

import torch
from torch import nn

from hf_autosparse import ITOPConfig, SETConfig, sparsify
from update_rules import F, T, linear, step, update


def test_itop_explores():
    layer = sparsify(linear([[1.0, 2, 3, 4]]), ITOPConfig(first_last="none", target_sparsity=0.5, every=2))
    sparsifier = layer.sparsifier
    sparsifier.kept.copy_(torch.tensor([[T, T, F, F]]))
    sparsifier.explored.copy_(sparsifier.kept)
    sparsifier.begin_step(step(1))
    layer(torch.tensor([[0.0, 0.0, 1.0, 3.0]])).sum().backward()
    update(layer, 2)  # half of the two kept weights is dropped, the smaller
    assert sparsifier.kept.tolist() == [[F, T, F, T]] and sparsifier.metrics()["explored"] == 0.75
    sparsifier.begin_step(step(99))
    assert not sparsifier.collects_gradient  # the last step changes no more


def test_itop_grows_at_random_as_set_does():
    masks = []
    shared = {"first_last": "none", "target_sparsity": 0.6, "every": 1}
    for config in (SETConfig(**shared, drop_fraction=0.5, until=1.0), ITOPConfig(**shared, growth="random")):
        torch.manual_seed(3)
        layer = sparsify(nn.Linear(12, 8, bias=False), config)
        layer.sparsifier.begin_step(step(6))
        assert not layer.sparsifier.collects_gradient
        update(layer, 7)
        masks.append(layer.sparsifier.kept)
    assert torch.equal(*masks)

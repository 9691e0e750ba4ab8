"""SNFS's update rule, by hand."""

import torch

from hf_autosparse import SNFSConfig, sparsify
from update_rules import F, T, linear, step, update


def test_snfs_grows_where_the_average_gradient_is_largest():
    config = SNFSConfig(first_last="none", target_sparsity=0.5, every=2, momentum=0.5, drop_fraction=0.5)
    layer = sparsify(linear([[1.0, 2, 3, 4]]), config)
    sparsifier = layer.sparsifier
    sparsifier.kept.copy_(torch.tensor([[T, T, F, F]]))
    for number, gradient in ((1, [0.0, 0, 8, 2]), (2, [0.0, 0, 1, 4])):
        sparsifier.begin_step(step(number - 1))
        layer(torch.tensor([gradient])).sum().backward()
        update(layer, number)
    assert sparsifier.momentum.tolist() == [[0, 0, 2.5, 2.5]]  # (8 / 2 + 1) / 2 and (2 / 2 + 4) / 2
    assert sparsifier.kept[0, 1] and sparsifier.kept.sum() == 2  # the smaller weight was dropped
    assert sparsifier.gradient_count(layer.weight) == 4
    sparsifier.begin_step(step(80))
    assert sparsifier.gradient_count(layer.weight) == 2

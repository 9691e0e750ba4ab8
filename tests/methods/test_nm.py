"""N:M masks and SR-STE's decay, by hand."""

import pytest
import torch
from torch import nn

from hf_autosparse import NMConfig, sparsify
from update_rules import linear


def test_nm_keeps_n_of_m_along_the_input():
    layer = sparsify(
        linear([[1.0, -4, 3, 2, 0.1, 0.2, 0.3, 0.4]]), NMConfig(first_last="none", n=2, m=4, pruned_decay=0.5)
    )
    assert layer.sparse_weight()[0].tolist() == pytest.approx([0, -4, 3, 0, 0, 0, 0.3, 0.4])
    layer(torch.ones(1, 8)).sum().backward()
    assert layer.weight.grad[0].tolist() == [1] * 8  # straight through
    with torch.no_grad():
        layer.sparsifier.regularise(layer.weight)
    assert layer.weight.grad[0].tolist() == pytest.approx([1.5, 1, 1, 2, 1.05, 1.1, 1, 1])
    conv = sparsify(nn.Conv2d(8, 2, 3), NMConfig(first_last="none", n=2, m=4))
    assert (conv.sparse_weight().unflatten(1, (2, 4)) != 0).sum(2).eq(2).all()
    with pytest.raises(ValueError, match="6 inputs do not divide into groups of m = 4"):
        sparsify(nn.Linear(6, 2), NMConfig(first_last="none", n=1, m=4))

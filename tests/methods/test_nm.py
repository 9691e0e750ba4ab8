"""N:M masks and SR-STE's decay, by hand."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_autosparse import NMConfig, sparse_layers, sparsify, sparsity_report
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


@pytest.mark.parametrize("odd", [nn.Linear(6, 8), nn.Conv2d(6, 8, 1), Conv1D(8, 6)])
def test_a_layer_whose_inputs_do_not_divide_stays_dense(odd, caplog):
    model = nn.ModuleDict({"odd": odd, "even": nn.Linear(8, 2)})
    sparsify(model, NMConfig(first_last="none", n=1, m=4))
    assert list(sparse_layers(model)) == ["even"]
    reason = "its 6 inputs do not divide into groups of m = 4"
    assert sparsity_report(model).dense == {"odd": reason}
    assert f"left dense: odd: {reason}" in caplog.text
    with pytest.raises(ValueError, match=f"no layer of Linear is left to sparsify:\n  : {reason}"):
        sparsify(nn.Linear(6, 2), NMConfig(first_last="none", n=1, m=4))

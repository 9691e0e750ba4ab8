"""SCL's gradients, by hand."""

import pytest
import torch

from hf_autosparse import SCLConfig, sparsify
from update_rules import linear


def test_scl_normalises_the_mask_gradients_of_each_feature():
    layer = sparsify(linear([[3.0, 4.0], [1.0, 1.0]]), SCLConfig(first_last="none", penalty=0.5))
    sparsifier = layer.sparsifier
    sparsifier.score.data = torch.tensor([[0.1, -0.1], [0.1, 0.1]])
    assert layer.sparse_weight().tolist() == [[3, 0], [1, 1]]
    layer(torch.tensor([[1.0, 1.0]]))[0, 0].backward()
    assert layer.weight.grad.tolist() == [[1, 0], [0, 0]]
    with torch.no_grad():
        sparsifier.regularise(layer.weight)
    assert sparsifier.score.grad.flatten().tolist() == pytest.approx([0.6 + 0.5, 0.8 + 0.5, 0.5, 0.5])

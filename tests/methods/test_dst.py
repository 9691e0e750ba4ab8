"""DST's gradients and thresholds, by hand."""

import math

import pytest
import torch

from hf_autosparse import DSTConfig, sparsify
from update_rules import linear, update


def test_dst_learns_weights_and_thresholds_through_its_mask():
    layer = sparsify(linear([[1.0, -0.25], [2.0, 0.5]]), DSTConfig(first_last="none", penalty=0.1))
    threshold = layer.sparsifier.threshold
    threshold.data = torch.tensor([0.5, 0.0])
    layer(torch.ones(1, 2)).sum().backward()
    assert layer.sparse_weight().tolist() == [[1, 0], [2, 0.5]]
    # |w| - t = .5, -.25, 2, .5: slopes .4, 1, 0, .4; dw = mask + |w| slope; dt = -sum w slope
    assert layer.weight.grad.flatten().tolist() == pytest.approx([1.4, 0.25, 1, 1.2])
    assert threshold.grad.tolist() == pytest.approx([-0.15, -0.2])
    with torch.no_grad():
        layer.sparsifier.regularise(layer.weight)
    assert threshold.grad.tolist() == pytest.approx([-0.15 - 0.1 * math.exp(-0.5), -0.3])
    threshold.data = torch.tensor([3.0, 3.0])
    update(layer, 1)
    assert threshold.tolist() == [0, 0]  # nothing was left
    threshold.data = torch.tensor([3.0, 1.0])  # |w| - t = -2, -2.75, 1, -.5
    layer.sparsifier.limit_sparsity(layer.weight, 0.5)
    assert threshold.tolist() == [1.75, -0.25]
    assert layer.sparse_weight().tolist() == [[0, 0], [2, 0.5]]

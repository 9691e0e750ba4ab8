"""LTP's gradients and threshold, by hand."""

import math

import pytest
import torch

from hf_autosparse import LTPConfig, sparsify
from update_rules import linear


def test_ltp_leaves_out_the_derivative_of_its_mask_by_the_weight():
    layer = sparsify(linear([[1.0, 3.0]]), LTPConfig(first_last="none", temperature=0.2, penalty=0.5))
    sparsifier = layer.sparsifier
    assert sparsifier.scale.tolist() == [5]
    sparsifier.threshold.data = torch.tensor([0.3])  # tau = 1.5, T = 1
    soft = torch.sigmoid(torch.tensor([1.0 - 1.5, 9.0 - 1.5]))
    torch.testing.assert_close(layer.current_weight(), torch.tensor([[1.0, 3.0]]) * soft)
    layer(torch.ones(1, 2)).sum().backward()
    torch.testing.assert_close(layer.weight.grad[0], soft)
    slope = soft * (1 - soft) / 0.2
    assert sparsifier.threshold.grad.item() == pytest.approx(-(slope[0] + 3 * slope[1]).item())
    with torch.no_grad():
        sparsifier.regularise(layer.weight)
    assert sparsifier.threshold.grad.item() == pytest.approx(-(1.5 * slope[0] + 3.5 * slope[1]).item())
    assert layer.sparse_weight().tolist() == [[0, 3]]
    assert sparsifier.metrics()["mean_threshold"].item() == pytest.approx(math.sqrt(1.5))
    sparsifier.threshold.data = torch.tensor([100.0])
    sparsifier.limit_sparsity(layer.weight, 0.5)
    assert layer.sparse_weight().tolist() == [[0, 3]]

"""Continuous Sparsification's mask and penalty, by hand."""

import math

import pytest
import torch

from hf_autosparse import ContinuousConfig, sparsify
from update_rules import linear, step


def test_continuous_hardens_its_mask():
    layer = sparsify(linear([[1.0, 2.0]]), ContinuousConfig(first_last="none", score_init=0.0, penalty=0.5))
    sparsifier = layer.sparsifier
    sparsifier.score.data = torch.tensor([[0.1, -0.1]])
    sparsifier.begin_step(step(0))
    soft = 2 / (1 + math.exp(-0.1))  # scaled by 1 / sigmoid(0)
    assert layer.current_weight()[0].tolist() == pytest.approx([soft, 2 * (2 - soft)])
    sparsifier.begin_step(step(100))
    assert sparsifier.metrics()["beta"] == 200
    assert layer.current_weight()[0].tolist() == pytest.approx([2, 0], abs=1e-6)
    assert layer.sparse_weight().tolist() == [[2, 0]] == layer.eval().current_weight().tolist()
    sparsifier.begin_step(step(0))
    sparsifier.score.grad = torch.zeros(1, 2)
    with torch.no_grad():
        sparsifier.regularise(layer.weight)
    assert sparsifier.score.grad[0].tolist() == pytest.approx([0.5 * 2 * soft / 2 * (1 - soft / 2)] * 2)

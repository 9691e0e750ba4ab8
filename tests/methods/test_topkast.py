"""TopKAST's sets and gradients, and Powerpropagation, by hand."""

import pytest
import torch
from torch import nn

from hf_autosparse import TopKASTConfig, sparsify
from hf_autosparse.methods import Progress
from update_rules import linear, step, update


def test_topkast_anneals_the_weights_outside_its_forward_set():
    config = TopKASTConfig(first_last="none", target_sparsity=0.5, alpha_schedule="linear", alpha_update="step")
    layer = sparsify(linear([[1.0, 2, 3, 4]]), config)
    layer.sparsifier.begin_step(Progress(0.75, 1.0, 75, 100))
    layer(torch.ones(1, 4)).sum().backward()
    assert layer.weight.grad.tolist() == [[0.25, 0.25, 1, 1]]


def test_topkast_sets():
    config = TopKASTConfig(first_last="none", target_sparsity=0.75, backward_sparsity=0.5, l2=0.1, every=1)
    layer = sparsify(linear([[1.0, -4, 3, 2]]), config)
    layer.sparsifier.begin_step(step(0))
    layer(torch.ones(1, 4)).sum().backward()
    assert layer.sparse_weight().tolist() == [[0, -4, 0, 0]]
    assert layer.weight.grad.tolist() == [[0, 1, 1, 0]]
    with torch.no_grad():
        layer.sparsifier.regularise(layer.weight)
    assert layer.weight.grad[0].tolist() == pytest.approx([0, 1 - 0.4, 1 + 0.1 / 0.25 * 3, 0])
    layer.weight.data = torch.tensor([[9.0, 1, 2, 3]])
    update(layer, 1)
    assert layer.sparse_weight().tolist() == [[9, 0, 0, 0]]


def test_topkast_with_equal_sets_is_a_hard_mask():
    layer = sparsify(nn.Linear(9, 7), TopKASTConfig(first_last="none", target_sparsity=0.6, backward_sparsity=0.6))
    assert torch.equal(layer.sparsifier.learning, layer.sparsifier.kept)


def test_powerpropagation_gradients():
    layer = sparsify(linear([[4.0, -1, 0]]), TopKASTConfig(first_last="none", target_sparsity=0.0, power=1.5))
    torch.testing.assert_close(layer.weight[0].abs(), torch.tensor([4 ** (2 / 3), 1, 0]))
    layer(torch.ones(1, 3)).sum().backward()
    torch.testing.assert_close(layer.weight.grad[0], 1.5 * layer.weight[0].abs().sqrt().detach())


def test_powerpropagation_starts_from_the_same_weights():
    layer = nn.Linear(6, 5)
    before = layer.weight.detach().clone()
    sparsify(layer, TopKASTConfig(first_last="none", target_sparsity=0.0, power=3.0))
    torch.testing.assert_close(layer.sparse_weight(), before)

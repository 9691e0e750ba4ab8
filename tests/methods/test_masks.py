"""The pure functions that masks are made with."""

import pytest
import torch

from hf_autosparse.functional import binary_step, drop_and_grow, largest, masked_weight, n_of_m_mask
from update_rules import F, T


def test_masked_weight():
    weight = torch.tensor([1.0, -2.0, 3.0, 4.0], requires_grad=True)
    kept, learning = torch.tensor([T, F, T, F]), torch.tensor([T, T, T, F])
    out = masked_weight(weight, kept, alpha=0.5, learning=learning)
    out.backward(torch.tensor([10.0, 10.0, 10.0, 10.0]))
    assert out.tolist() == [1, 0, 3, 0]
    assert weight.grad.tolist() == [10, 5, 10, 0]


def test_masked_weight_drops_non_finite_pruned_weights():
    assert masked_weight(torch.tensor([float("nan"), 1.0]), torch.tensor([F, T])).tolist() == [0, 1]


def test_largest_keeps_the_count_in_spite_of_ties():
    assert largest(torch.ones(2, 3), 4).sum() == 4
    assert largest(torch.tensor([3.0, 1.0, 2.0]), 2).tolist() == [T, F, T]
    assert largest(torch.ones(3), 0).tolist() == [F, F, F]


def test_drop_and_grow():
    magnitude = torch.tensor([5.0, 1.0, 4.0, 9.0, 9.0])
    kept = torch.tensor([T, T, T, F, F])
    assert drop_and_grow(magnitude, kept, torch.tensor([0.0, 0, 0, 1, 2]), 1).tolist() == [T, F, T, F, T]
    assert drop_and_grow(magnitude, kept, torch.tensor([0.0, 7, 0, 1, 2]), 1).tolist() == kept.tolist()  # grown again


def test_n_of_m():
    assert n_of_m_mask(torch.tensor([[1.0, 4, 3, 2, 9, 8, 0, 7]]), 2, 4).tolist() == [[F, T, T, F, T, T, F, F]]


def test_dst_step_gradient_at_its_breakpoints():
    x = torch.tensor([0.0, 0.2, -0.2, 0.4, -0.5, 1.0, 1.1, -1.1], requires_grad=True)
    out = binary_step(x)
    assert out.tolist() == [0, 1, 0, 1, 0, 1, 1, 0]
    out.sum().backward()
    assert x.grad.tolist() == pytest.approx([2, 1.2, 1.2, 0.4, 0.4, 0.4, 0, 0])

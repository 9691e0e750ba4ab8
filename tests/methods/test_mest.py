"""MEST's update rule, by hand."""

import pytest
import torch
from torch import nn

from hf_autosparse import MESTConfig, sparsify
from update_rules import F, T, linear, step, update

SOFT = MESTConfig(first_last="none", target_sparsity=0.6, every=1, mutation_fraction=0.5, soft_memory_bound=True)


def test_mest_prunes_the_least_important_and_grows_zeros_at_random():
    config = MESTConfig(first_last="none", target_sparsity=0.5, every=1, mutation_fraction=0.5, gradient_weight=1.0)
    layer = sparsify(linear([[1.0, 2, 3, 4]]), config)
    sparsifier = layer.sparsifier
    sparsifier.kept.copy_(torch.tensor([[T, T, F, F]]))
    sparsifier.begin_step(step(0))
    layer(torch.tensor([[1.5, 0.1, 9.0, 9.0]])).sum().backward()
    grown = update(layer, 1)  # |w| + |g|: 2.5 and 2.1
    assert sparsifier.kept[0, 0] and not grown[0, 0]
    assert sparsifier.kept.sum() == 2 and grown.sum() == 1 and not layer.weight[grown].any()


def test_mest_holds_more_weights_between_changes_under_the_soft_bound():
    layer = sparsify(nn.Linear(10, 2, bias=False), SOFT)
    counts = []
    for number in (1, 56, 57, 74, 75, 76):  # the mutation is halved at 0.75 * 0.75 of the run
        grown = update(layer, number)
        counts.append((int(layer.sparsifier.kept.sum()), None if grown is None else int(grown.sum())))
    assert counts == [(12, 4), (12, 4), (10, 2), (10, 2), (8, 0), (8, None)]


@pytest.mark.parametrize("steps", [97, 98, 99, 101, 102, 103])
def test_mest_ends_at_its_budget_where_until_lies_between_two_steps(steps):
    layer = sparsify(nn.Linear(10, 2, bias=False), SOFT)
    for number in range(1, steps + 1):
        update(layer, number, steps)
    assert layer.sparsifier.kept.sum() == 8

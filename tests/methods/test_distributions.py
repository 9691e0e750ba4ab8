"""How a budget is spread over the layers."""

import math
from typing import get_args

import pytest
from torch import nn

from hf_autosparse import GMPConfig, TopKASTConfig, sparsify
from hf_autosparse.methods.distributions import SPARSITY_DISTRIBUTIONS, Distribution, erk


def test_erk():
    shapes = {"small": (10, 10), "middle": (100, 100), "large": (1000, 100)}
    # small is capped at density 1: 11,010 - 100 weights are left, in proportion to 200 and 1,100
    expected = {"small": 0.0, "middle": 1 - 10_910 * 200 / 1300 / 10_000, "large": 1 - 10_910 * 1100 / 1300 / 100_000}
    assert erk(shapes, 0.9) == pytest.approx(expected)
    assert erk({"conv": (8, 4, 3, 3)}, 0.9) == pytest.approx({"conv": 0.9})
    assert erk(shapes, 0.0) == pytest.approx(dict.fromkeys(shapes, 0.0))


def test_a_budget_is_spread_over_the_layers():
    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 100), nn.Linear(100, 100))
    sparsify(model, GMPConfig(first_last="none", target_sparsity=0.9, sparsity_distribution="erk"))
    shapes = {str(i): tuple(model[i].weight.shape) for i in range(3)}
    shares = {str(i): model[i].sparsifier.final_sparsity for i in range(3)}
    assert shares == erk(shapes, 0.9) and shares["0"] < shares["1"] < shares["2"]
    assert sum(share * math.prod(shapes[i]) for i, share in shares.items()) == pytest.approx(0.9 * 11_100)


def test_no_layer_loses_its_last_weight():
    layer = sparsify(nn.Conv2d(1, 1, 3), TopKASTConfig(first_last="none", target_sparsity=0.97))
    assert layer.sparsifier.kept.sum() == 1


def test_the_names_are_those_of_the_type():
    assert get_args(Distribution) == tuple(SPARSITY_DISTRIBUTIONS)

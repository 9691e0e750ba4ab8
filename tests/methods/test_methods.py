"""The methods' update rules on tensors small enough to check by hand, and the contract that all of them keep."""

import copy
import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import drive
from hf_autosparse import AutoSparseConfig, finalize, sparse_layers, sparsify, sparsity
from hf_autosparse.functional import binary_step, drop_and_grow, largest, masked_weight, n_of_m_mask
from hf_autosparse.methods import Progress, available_methods, get_method
from hf_autosparse.methods.base import _REGISTRY
from hf_autosparse.methods.distributions import erk
from hf_autosparse.methods.schedules import cosine_decay, cubic_sparsity
from hf_autosparse.reports.flops import step_fraction
from hf_autosparse.training.callbacks import AutoSparseCallback
from hf_autosparse.training.driver import reset_optimizer_state
from paths import HELPERS, PYTHONPATH, ROOT
from tiny import assert_same_state, tiny_trainer

T, F = True, False
SETTINGS = {
    "autosparse": {"threshold_init": {"sparsity": 0.6}},
    "continuous": {"options": {"init": 0.0}},
    "dst": {"options": {"penalty": 0.01}},
    "fixed_mask": {},
    "gmp": {"target_sparsity": 0.6, "options": {"every": 2}},
    "itop": {"target_sparsity": 0.6, "options": {"every": 3}},
    "ltp": {"options": {"penalty": 1e-4}},
    "mest": {"target_sparsity": 0.6, "options": {"every": 3, "soft": True, "gradient": 0.1}},
    "nm": {"options": {"n": 1, "m": 4}},
    "optg": {"target_sparsity": 0.6},
    "rigl": {"target_sparsity": 0.6, "options": {"every": 3}},
    "scl": {"options": {"penalty": 0.05}},
    "set": {"target_sparsity": 0.6, "options": {"every": 3}},
    "snfs": {"target_sparsity": 0.6, "options": {"every": 3}},
    "str": {"threshold_init": {"sparsity": 0.6}},
    "swat": {"target_sparsity": 0.6, "options": {"every": 2}},
    "topkast": {"target_sparsity": 0.6, "backward_sparsity": 0.3, "options": {"every": 3, "l2": 1e-4, "power": 2.0}},
}
EXACT = {"nm": 0.75} | {name: x["target_sparsity"] for name, x in SETTINGS.items() if "target_sparsity" in x}


def config(method: str, **changes) -> AutoSparseConfig:
    return AutoSparseConfig(method=method, first_last="none", **(SETTINGS[method] | changes))


def linear(rows: list[list[float]]) -> nn.Linear:
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    layer.weight.data = torch.tensor(rows)
    return layer


def step(number: int, of: int = 100) -> Progress:
    return Progress(0.0, 1.0, number, of)


@torch.no_grad()
def update(layer, number: int, of: int = 100):
    return layer.sparsifier.end_step(layer.weight, step(number, of))


# ---- Pure functions ----


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


def test_schedules():
    assert [cubic_sparsity(p, 0.8) for p in (0.0, 0.5, 1.0, 2.0)] == pytest.approx([0, 0.7, 0.8, 0.8])
    assert [cosine_decay(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([1, 0.5, 0])


def test_erk():
    shapes = {"small": (10, 10), "middle": (100, 100), "large": (1000, 100)}
    # small is capped at density 1: 11,010 - 100 weights are left, in proportion to 200 and 1,100
    expected = {"small": 0.0, "middle": 1 - 10_910 * 200 / 1300 / 10_000, "large": 1 - 10_910 * 1100 / 1300 / 100_000}
    assert erk(shapes, 0.9) == pytest.approx(expected)
    assert erk({"conv": (8, 4, 3, 3)}, 0.9) == pytest.approx({"conv": 0.9})
    assert erk(shapes, 0.0) == pytest.approx(dict.fromkeys(shapes, 0.0))


def test_a_budget_is_spread_over_the_layers():
    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 100), nn.Linear(100, 100))
    sparsify(model, config("gmp", target_sparsity=0.9, sparsity_distribution="erk", options={}))
    shapes = {str(i): tuple(model[i].weight.shape) for i in range(3)}
    shares = {str(i): model[i].sparsifier.final_sparsity for i in range(3)}
    assert shares == erk(shapes, 0.9) and shares["0"] < shares["1"] < shares["2"]
    assert sum(share * math.prod(shapes[i]) for i, share in shares.items()) == pytest.approx(0.9 * 11_100)


def test_no_layer_loses_its_last_weight():
    layer = sparsify(nn.Conv2d(1, 1, 3), config("topkast", target_sparsity=0.97))
    assert layer.sparsifier.kept.sum() == 1


# ---- Update rules ----


def test_gmp_follows_the_cubic_schedule():
    layer = sparsify(linear([[1.0, 2, 3, 4, 5, 6, 7, 8, 9, 10]]), config("gmp", target_sparsity=0.8))
    sparsifier = layer.sparsifier
    for number, pruned in ((2, 1), (3, 1), (38, 7), (75, 8), (100, 8)):  # 0.8 (1 - (1 - 2/75)^3) = 0.06, ...
        update(layer, number)
        assert (~sparsifier.kept).sum() == pruned, number
    assert layer.sparse_weight().tolist() == [[0] * 8 + [9, 10]]


def test_gmp_reaches_its_target_in_a_short_run():
    layer = sparsify(linear([[1.0, 2, 3, 4]]), config("gmp", target_sparsity=0.5, options={"every": 1000}))
    for number in range(1, 5):
        update(layer, number, of=4)
    assert sparsity(layer) == 0.5


def test_set_drops_the_smallest_and_grows_at_random():
    torch.manual_seed(0)
    layer = sparsify(nn.Linear(20, 10, bias=False), config("set", target_sparsity=0.5, options={"every": 1}))
    before = layer.sparsifier.kept.clone()
    grown = update(layer, 25, of=100)
    count = round(0.3 * 0.75 * 100)  # cosine_decay(1/3) = 0.75
    after = layer.sparsifier.kept
    assert before.sum() == after.sum() == 100
    survivors = layer.weight.abs().where(before, -1).flatten().topk(100 - count).indices
    assert after.flatten()[survivors].all()
    assert torch.equal(grown, after & ~before) and 0 < grown.sum() <= count
    assert not layer.weight[grown].any()


def test_rigl_grows_where_the_gradient_is_largest():
    options = {"every": 1, "drop_fraction": 1.0}
    layer = sparsify(linear([[1.0, 2, 3, 4]]), config("rigl", target_sparsity=0.5, options=options))
    layer.sparsifier.kept.copy_(torch.tensor([[T, T, F, F]]))
    layer.sparsifier.begin_step(step(0, of=10_000))
    for _ in range(2):  # two micro-batches
        layer(torch.tensor([[1.0, 5.0, -9.0, 2.0]])).sum().backward()
    assert layer.weight.grad.tolist() == [[2, 10, 0, 0]]  # the weights' own gradient is masked
    grown = update(layer, 1, of=10_000)  # both are dropped; 10 and 18 are the largest of |gradient|
    assert grown.tolist() == [[F, F, T, F]] and layer.sparsifier.kept.tolist() == [[F, T, T, F]]
    assert layer.weight.tolist() == [[1, 2, 0, 4]]


def test_rigl_with_random_growth_is_set():
    """Given the same scores, the two leave the same mask."""
    layers = {}
    for method in ("set", "rigl"):
        torch.manual_seed(3)
        layers[method] = sparsify(nn.Linear(12, 8, bias=False), config(method, options={"every": 1}))
    rigl = layers["rigl"].sparsifier
    rigl.collect_gradient(rigl.random_score(layers["rigl"].weight, step=7))
    for layer in layers.values():
        update(layer, 7)
    assert torch.equal(layers["set"].sparsifier.kept, layers["rigl"].sparsifier.kept)


def test_rigl_holds_no_gradient_between_updates():
    layer = sparsify(nn.Linear(8, 8), config("rigl", options={"every": 5}))
    for number in range(12):
        layer.sparsifier.begin_step(step(number))
        layer(torch.ones(2, 8)).sum().backward()
        assert (layer.sparsifier._gradient is not None) == (number % 5 == 4)
        update(layer, number + 1)
        assert layer.sparsifier._gradient is None


def test_a_layer_that_a_step_did_not_use_keeps_its_mask():
    for method in ("rigl", "snfs", "mest"):
        options = {"every": 1} | ({"gradient": 0.5} if method == "mest" else {})
        layer = sparsify(nn.Linear(8, 8), config(method, options=options))
        before = layer.sparsifier.kept.clone()
        layer.sparsifier.begin_step(step(0))
        grown = update(layer, 1)
        assert layer.sparsifier.kept.sum() == before.sum()
        assert method != "rigl" or (grown is None and torch.equal(layer.sparsifier.kept, before))


def test_itop_explores():
    layer = sparsify(linear([[1.0, 2, 3, 4]]), config("itop", target_sparsity=0.5, options={"every": 2}))
    sparsifier = layer.sparsifier
    sparsifier.kept.copy_(torch.tensor([[T, T, F, F]]))
    sparsifier.explored.copy_(sparsifier.kept)
    sparsifier.begin_step(step(1))
    layer(torch.tensor([[0.0, 0.0, 1.0, 3.0]])).sum().backward()
    update(layer, 2)  # half of the two kept weights is dropped, the smaller
    assert sparsifier.kept.tolist() == [[F, T, F, T]] and sparsifier.metrics()["explored"] == 0.75
    sparsifier.begin_step(step(99))
    assert not sparsifier.collects_gradient  # the last step changes no more


def test_itop_grows_at_random_as_set_does():
    masks = []
    for method, options in (("set", {"drop_fraction": 0.5, "until": 1.0}), ("itop", {"growth": "random"})):
        torch.manual_seed(3)
        layer = sparsify(nn.Linear(12, 8, bias=False), config(method, options={"every": 1} | options))
        layer.sparsifier.begin_step(step(6))
        assert not layer.sparsifier.collects_gradient
        update(layer, 7)
        masks.append(layer.sparsifier.kept)
    assert torch.equal(*masks)


def test_snfs_grows_where_the_average_gradient_is_largest():
    layer = sparsify(
        linear([[1.0, 2, 3, 4]]),
        config("snfs", target_sparsity=0.5, options={"every": 2, "momentum": 0.5, "drop_fraction": 0.5}),
    )
    sparsifier = layer.sparsifier
    sparsifier.kept.copy_(torch.tensor([[T, T, F, F]]))
    for number, gradient in ((1, [0.0, 0, 8, 2]), (2, [0.0, 0, 1, 4])):
        sparsifier.begin_step(step(number - 1))
        layer(torch.tensor([gradient])).sum().backward()
        update(layer, number)
    assert sparsifier.momentum.tolist() == [[0, 0, 2.5, 2.5]]  # (8 / 2 + 1) / 2 and (2 / 2 + 4) / 2
    assert sparsifier.kept[0, 1] and sparsifier.kept.sum() == 2  # the smaller weight was dropped
    assert sparsifier.gradient_count(layer.weight) == 4
    sparsifier.begin_step(step(80))
    assert sparsifier.gradient_count(layer.weight) == 2


def test_topkast_anneals_the_weights_outside_its_forward_set():
    settings = {"target_sparsity": 0.5, "alpha_schedule": "linear", "alpha_update": "step", "options": {}}
    layer = sparsify(linear([[1.0, 2, 3, 4]]), config("topkast", backward_sparsity=None, **settings))
    layer.sparsifier.begin_step(Progress(0.75, 1.0, 75, 100))
    layer(torch.ones(1, 4)).sum().backward()
    assert layer.weight.grad.tolist() == [[0.25, 0.25, 1, 1]]


def test_topkast_sets():
    settings = {"target_sparsity": 0.75, "backward_sparsity": 0.5, "options": {"l2": 0.1, "every": 1}}
    layer = sparsify(linear([[1.0, -4, 3, 2]]), config("topkast", **settings))
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
    layer = sparsify(nn.Linear(9, 7), config("topkast", backward_sparsity=0.6, options={}))
    assert torch.equal(layer.sparsifier.learning, layer.sparsifier.kept)


def test_powerpropagation_gradients():
    layer = sparsify(linear([[4.0, -1, 0]]), config("topkast", target_sparsity=0.0, options={"power": 1.5}))
    torch.testing.assert_close(layer.weight[0].abs(), torch.tensor([4 ** (2 / 3), 1, 0]))
    layer(torch.ones(1, 3)).sum().backward()
    torch.testing.assert_close(layer.weight.grad[0], 1.5 * layer.weight[0].abs().sqrt().detach())


def test_powerpropagation_starts_from_the_same_weights():
    layer = nn.Linear(6, 5)
    before = layer.weight.detach().clone()
    sparsify(layer, config("topkast", target_sparsity=0.0, options={"power": 3.0}))
    torch.testing.assert_close(layer.sparse_weight(), before)


def test_nm_keeps_n_of_m_along_the_input():
    layer = sparsify(
        linear([[1.0, -4, 3, 2, 0.1, 0.2, 0.3, 0.4]]), config("nm", options={"n": 2, "m": 4, "decay": 0.5})
    )
    assert layer.sparse_weight()[0].tolist() == pytest.approx([0, -4, 3, 0, 0, 0, 0.3, 0.4])
    layer(torch.ones(1, 8)).sum().backward()
    assert layer.weight.grad[0].tolist() == [1] * 8  # straight through
    with torch.no_grad():
        layer.sparsifier.regularise(layer.weight)
    assert layer.weight.grad[0].tolist() == pytest.approx([1.5, 1, 1, 2, 1.05, 1.1, 1, 1])
    conv = sparsify(nn.Conv2d(8, 2, 3), config("nm", options={"n": 2, "m": 4}))
    assert (conv.sparse_weight().unflatten(1, (2, 4)) != 0).sum(2).eq(2).all()
    with pytest.raises(ValueError, match="6 inputs do not divide into groups of m = 4"):
        sparsify(nn.Linear(6, 2), config("nm"))


def test_str_is_autosparse_at_alpha_0():
    inputs = torch.randn(4, 6)
    gradients = []
    for settings in ({"method": "str"}, {"method": "autosparse", "alpha_init": 0.0}):
        torch.manual_seed(1)
        layer = sparsify(nn.Linear(6, 5), AutoSparseConfig(first_last="none", **settings))
        layer(inputs).square().sum().backward()
        gradients.append((layer.weight.grad, layer.sparsifier.threshold.grad))
    assert torch.equal(gradients[0][0], gradients[1][0]) and torch.equal(gradients[0][1], gradients[1][1])


def test_mest_prunes_the_least_important_and_grows_zeros_at_random():
    options = {"every": 1, "mutation": 0.5, "gradient": 1.0}
    layer = sparsify(linear([[1.0, 2, 3, 4]]), config("mest", target_sparsity=0.5, options=options))
    sparsifier = layer.sparsifier
    sparsifier.kept.copy_(torch.tensor([[T, T, F, F]]))
    sparsifier.begin_step(step(0))
    layer(torch.tensor([[1.5, 0.1, 9.0, 9.0]])).sum().backward()
    grown = update(layer, 1)  # |w| + |g|: 2.5 and 2.1
    assert sparsifier.kept[0, 0] and not grown[0, 0]
    assert sparsifier.kept.sum() == 2 and grown.sum() == 1 and not layer.weight[grown].any()


def test_mest_holds_more_weights_between_changes_under_the_soft_bound():
    options = {"every": 1, "mutation": 0.5, "soft": True}
    layer = sparsify(nn.Linear(10, 2, bias=False), config("mest", target_sparsity=0.6, options=options))
    counts = []
    for number in (1, 56, 57, 74, 75, 76):  # the mutation is halved at 0.75 * 0.75 of the run
        grown = update(layer, number)
        counts.append((int(layer.sparsifier.kept.sum()), None if grown is None else int(grown.sum())))
    assert counts == [(12, 4), (12, 4), (10, 2), (10, 2), (8, 0), (8, None)]


@pytest.mark.parametrize("steps", [97, 98, 99, 101, 102, 103])
def test_mest_ends_at_its_budget_where_until_lies_between_two_steps(steps):
    options = {"every": 1, "mutation": 0.5, "soft": True}
    layer = sparsify(nn.Linear(10, 2, bias=False), config("mest", target_sparsity=0.6, options=options))
    for number in range(1, steps + 1):
        update(layer, number, steps)
    assert layer.sparsifier.kept.sum() == 8


def test_optg_scores_collect_what_removal_would_cost():
    layer = sparsify(linear([[1.0, -2, 3, 4]]), config("optg", target_sparsity=0.5))
    sparsifier = layer.sparsifier
    sparsifier.kept.copy_(torch.tensor([[T, F, T, F]]))
    sparsifier.begin_step(Progress(50.0, 100.0, 50, 100))
    layer(torch.tensor([[1.0, 1, 2, -1]])).sum().backward()
    assert layer.weight.grad.tolist() == [[1, 0, 2, 0]]
    assert sparsifier.score.grad.tolist() == [[1, -2, 6, -4]]
    with torch.no_grad():
        sparsifier.regularise(layer.weight)
        assert sparsifier.score.grad.tolist() == [[0.5, -1, 3, -2]]  # sigmoid(50 - 100 / 2) = 1 / 2
        sparsifier.score -= sparsifier.score.grad
        sparsifier.end_step(layer.weight, Progress(50.0, 100.0, 50, 100))  # 0.5 * 1 / 2 of 4
        assert sparsifier.kept.tolist() == [[T, T, F, T]]
        sparsifier.end_step(layer.weight, Progress(100.0, 100.0, 100, 100))
        assert sparsifier.kept.tolist() == [[F, T, F, T]]


def test_dst_step_gradient_at_its_breakpoints():
    x = torch.tensor([0.0, 0.2, -0.2, 0.4, -0.5, 1.0, 1.1, -1.1], requires_grad=True)
    out = binary_step(x)
    assert out.tolist() == [0, 1, 0, 1, 0, 1, 1, 0]
    out.sum().backward()
    assert x.grad.tolist() == pytest.approx([2, 1.2, 1.2, 0.4, 0.4, 0.4, 0, 0])


def test_dst_learns_weights_and_thresholds_through_its_mask():
    layer = sparsify(linear([[1.0, -0.25], [2.0, 0.5]]), config("dst", options={"penalty": 0.1}))
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
    assert layer.sparsifier.limit_sparsity(layer.weight, 0.5)
    assert threshold.tolist() == [1.75, -0.25]
    assert layer.sparse_weight().tolist() == [[0, 0], [2, 0.5]]


def test_continuous_hardens_its_mask():
    layer = sparsify(linear([[1.0, 2.0]]), config("continuous", options={"init": 0.0, "penalty": 0.5}))
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


def test_ltp_leaves_out_the_derivative_of_its_mask_by_the_weight():
    layer = sparsify(linear([[1.0, 3.0]]), config("ltp", options={"temperature": 0.2, "penalty": 0.5}))
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
    assert sparsifier.limit_sparsity(layer.weight, 0.5) and layer.sparse_weight().tolist() == [[0, 3]]
    with pytest.raises(ValueError, match="its weights are all 0 and give method 'ltp' no scale"):
        sparsify(linear([[0.0, 0.0]]), config("ltp"))


def test_scl_normalises_the_mask_gradients_of_each_feature():
    layer = sparsify(linear([[3.0, 4.0], [1.0, 1.0]]), config("scl", options={"penalty": 0.5}))
    sparsifier = layer.sparsifier
    sparsifier.score.data = torch.tensor([[0.1, -0.1], [0.1, 0.1]])
    assert layer.sparse_weight().tolist() == [[3, 0], [1, 1]]
    layer(torch.tensor([[1.0, 1.0]]))[0, 0].backward()
    assert layer.weight.grad.tolist() == [[1, 0], [0, 0]]
    with torch.no_grad():
        sparsifier.regularise(layer.weight)
    assert sparsifier.score.grad.flatten().tolist() == pytest.approx([0.6 + 0.5, 0.8 + 0.5, 0.5, 0.5])


def test_swat_learns_from_the_largest_activations_of_each_example():
    layer = sparsify(linear([[1.0, 2.0]]), config("swat", target_sparsity=0.5, options={}))
    inputs = torch.tensor([[3.0, 1.0], [1.0, -4.0]], requires_grad=True)
    out = layer(inputs)
    assert out.tolist() == [[2], [-8]]
    out.sum().backward()
    assert layer.weight.grad.tolist() == [[3, -4]] and inputs.grad.tolist() == [[0, 2], [0, 2]]
    assert layer.sparsifier.gradient_count(layer.weight) == 1
    layer.weight.data = torch.tensor([[2.0, 1.0]])
    for number, expected in ((4, [[0, 1]]), (5, [[2, 0]])):
        update(layer, number)
        assert layer.sparse_weight().tolist() == expected


@pytest.mark.parametrize("make", [lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), lambda: Conv1D(6, 4)])
def test_swat_with_dense_activations_is_topkast(make):
    inputs = torch.randn(2, 4, 5, 5) if make().weight.dim() == 4 else torch.randn(2, 3, 4)
    gradients = []
    for method, options in (("swat", {"activations": 0.0}), ("topkast", {})):
        torch.manual_seed(0)
        layer = sparsify(make(), config(method, backward_sparsity=None, options=options))
        layer(inputs).square().sum().backward()
        gradients.append((layer.weight.grad, layer.bias.grad))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
        lambda p: torch.optim.AdamW(p, 0.1, fused=True, amsgrad=True),
        lambda p: torch.optim.Adam(p, 0.1, foreach=True),
    ],
)
def test_optimizer_state_of_grown_weights_is_reset(make):
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = make([weight])
    weight.sum().backward()
    optimizer.step()
    shaped = [v for v in optimizer.state[weight].values() if torch.is_tensor(v) and v.shape == weight.shape]
    assert shaped and all(v.all() for v in shaped)
    reset_optimizer_state(optimizer, weight, torch.tensor([[T, F], [F, F]]))
    assert all((v != 0).tolist() == [[F, T], [T, T]] for v in shaped)


# ---- The contract ----


@pytest.fixture(params=available_methods())
def method(request):
    return request.param


def test_config_survives_json(method):
    made = config(method)
    assert AutoSparseConfig.from_dict(json.loads(json.dumps(made.to_dict()))) == made


def test_the_reference_is_stated(method):
    assert get_method(method).reference and get_method(method).__doc__


def test_trains_to_its_sparsity_resumes_and_finalizes_exactly(method):
    model = drive.sparse_net(config(method))
    optimizer = drive.optimizer_of(model)
    before = {name: layer.weight.detach().clone() for name, layer in sparse_layers(model).items()}
    drive.drive(model, optimizer, 0, 6)
    saved = copy.deepcopy([model.state_dict(), optimizer.state_dict()])
    drive.drive(model, optimizer, 6, 12)

    resumed = drive.sparse_net(config(method), seed=1)
    resumed_optimizer = drive.optimizer_of(resumed)
    resumed.load_state_dict(saved[0])
    resumed_optimizer.load_state_dict(saved[1])
    drive.drive(resumed, resumed_optimizer, 6, 12)
    assert_same_state(model, resumed)

    layers = sparse_layers(model)
    assert all(not torch.equal(layer.weight, before[name]) for name, layer in layers.items())
    assert all(layer.sparsifier._gradient is None for layer in layers.values())
    masks = {name: layer.sparsifier.mask(layer.weight) for name, layer in layers.items()}
    reached = sparsity(model)
    assert reached == pytest.approx(EXACT[method], abs=0.01) if method in EXACT else 0.05 < reached < 0.95
    inputs = drive.batch(0)[0]
    with torch.no_grad():
        sparse = model.eval()(inputs)
        torch.testing.assert_close(finalize(model)(inputs), sparse, atol=0, rtol=0)
    assert sparsity(model) == reached
    assert not any(model.get_submodule(name).weight[~mask].any() for name, mask in masks.items())


def test_accumulation_changes_nothing(method):
    states = []
    for parts in (1, 4):
        model = drive.sparse_net(config(method))
        drive.drive(model, drive.optimizer_of(model), 0, 8, parts=parts)
        states.append(model.state_dict())
    for name, whole in states[0].items():
        torch.testing.assert_close(states[1][name], whole, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_bf16(method):
    model = drive.sparse_net(config(method))
    for layer in sparse_layers(model).values():
        layer.sparsifier.begin_step(step(1))
    inputs, labels = drive.batch(0)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(inputs)
    assert out.dtype == torch.bfloat16
    nn.functional.cross_entropy(out.float(), labels).backward()
    assert all(layer.weight.grad.isfinite().all() for layer in sparse_layers(model).values())
    model.to(torch.bfloat16)
    assert all(layer.sparse_weight().dtype == torch.bfloat16 for layer in sparse_layers(model).values())


def test_gradients_are_zero_where_the_method_says_so(method):
    """What the theoretical FLOPs leave out is left out."""
    model = drive.sparse_net(config(method))
    optimizer = drive.optimizer_of(model)
    drive.drive(model, optimizer, 0, 5)
    for layer in sparse_layers(model).values():
        layer.sparsifier.begin_step(step(5, of=12))
    inputs, labels = drive.batch(5)
    expected = {n: layer.sparsifier.gradient_mask(layer.weight) for n, layer in sparse_layers(model).items()}
    nn.functional.cross_entropy(model(inputs), labels).backward()
    for name, layer in sparse_layers(model).items():
        count = layer.sparsifier.gradient_count(layer.weight)
        assert count.dtype == torch.int64 and 0 < count <= layer.weight.numel()
        if expected[name] is not None:
            assert not layer.weight.grad[~expected[name]].any() and count >= expected[name].sum()


@pytest.mark.parametrize(
    ("method", "settings", "published"),
    [
        ("topkast", {"options": {}, "backward_sparsity": None}, 0.48),  # (2 F + 1) / 3
        ("topkast", {"options": {}, "backward_sparsity": 1 - 0.5147}, 0.32),
        ("rigl", {"options": {"every": 100}}, 0.226),  # (3 F every + 2 F + 1) / 3 (every + 1), RigL's appendix
        ("set", {}, 0.2235),
    ],
)
def test_training_flops_at_uniform_80_percent(method, settings, published):
    """ResNet-50 with its first and last layer dense: F = .2235, here as the density of one layer."""
    layer = sparsify(nn.Linear(100, 100), config(method, target_sparsity=1 - 0.2235, **settings))
    layer.sparsifier.begin_step(step(1, of=1000))
    density = layer.sparsifier.mask(layer.weight).float().mean().item()
    cost = layer.sparsifier.gradient_count(layer.weight).item() / layer.weight.numel()
    assert step_fraction(density, cost) == pytest.approx(published, abs=0.003)


def test_a_method_without_alpha_needs_no_length_of_the_training_set():
    model = drive.sparse_net(config("set"))
    arguments = SimpleNamespace(gradient_accumulation_steps=1), SimpleNamespace(max_steps=12, global_step=0), None
    AutoSparseCallback().on_train_begin(*arguments, model=model, train_dataloader=iter(()))
    gradual = drive.sparse_net(config("gmp", alpha_init=0.5, alpha_schedule="linear"))
    with pytest.raises(ValueError, match="needs a training set with a length"):
        AutoSparseCallback().on_train_begin(*arguments, model=gradual, train_dataloader=iter(()))


def test_two_processes_equal_one(tmp_path):
    """All methods in one launch; the masks agree between the processes, too."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    command += [str(HELPERS / "drive.py"), str(tmp_path)]
    (tmp_path / "configs.json").write_text(json.dumps({name: config(name).to_dict() for name in available_methods()}))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    for name in available_methods():
        first, second = (torch.load(tmp_path / f"{name}-{rank}.pt") for rank in (0, 1))
        model = drive.sparse_net(config(name))
        drive.drive(model, drive.optimizer_of(model), 0, 8)
        for key, single in model.state_dict().items():
            assert torch.equal(first[key], second[key]), f"{name}: {key}"
            torch.testing.assert_close(first[key], single, atol=1e-5, rtol=1e-4, msg=lambda m: f"{name}: {key}: {m}")  # noqa: B023


def test_trainer_resumes_a_method_with_masks_exactly(tmp_path):
    settings = {"target_sparsity": 0.6, "options": {"every": 3}}
    whole = tiny_trainer(
        tmp_path / "a", config=config("rigl", **settings), max_steps=12, save_strategy="steps", save_steps=6
    )
    whole.train()
    resumed = tiny_trainer(tmp_path / "b", config=config("rigl", **settings), max_steps=12)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-6"))
    assert_same_state(whole.model, resumed.model)
    assert sparsity(whole.model) == pytest.approx(0.6, abs=0.005)
    moments = whole.trajectory.moments
    assert resumed.trajectory.moments == moments
    layer = next(iter(sparse_layers(whole.model).values()))
    dense, active = layer.weight.numel(), int(layer.sparsifier.kept.sum())
    assert moments[0].backward_sparsity[0] == pytest.approx(1 - (active + round((dense - active) / 3)) / dense)
    assert moments[-1].backward_sparsity == moments[-1].sparsity and moments[-1].alpha is None


def test_adding_a_method_as_documented():
    page = (ROOT / "docs" / "add_a_method.md").read_text()
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    assert code.index("config = ") > code.index("@register")
    method = code[code.index("@dataclass") : code.index("config = ")]
    assert len([line for line in method.splitlines() if line.strip()]) <= 40
    try:
        names = {}
        exec(code, names)
        assert sparsity(names["model"]) == pytest.approx(0.8, abs=1e-3)
        settings = {"method": "movement", "target_sparsity": 0.6, "first_last": "none"}
        model = drive.sparse_net(AutoSparseConfig(**settings))
        drive.drive(model, drive.optimizer_of(model), 0, 8)
        masks = [layer.sparsifier.mask(layer.weight).flatten() for layer in sparse_layers(model).values()]
        assert torch.cat(masks).float().mean().item() == pytest.approx(0.4, abs=0.01)
    finally:
        _REGISTRY.pop("movement", None)


def test_the_documented_methods_are_those_there_are():
    page = (ROOT / "docs" / "methods.md").read_text()
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], {})
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == set(available_methods()) - {"fixed_mask"}
    for name in available_methods():
        for option in dataclasses.fields(get_method(name).Options):
            assert f"`{option.name}`" in page, f"{name}: {option.name}"


# ---- Configuration ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "rigl"}, "target_sparsity = None, but method 'rigl' keeps a fixed budget"),
        (
            {"method": "set", "target_sparsity": 0.8, "alpha_init": 0.5},
            "alpha_init = 0.5 has no effect on method 'set'",
        ),
        ({"options": {"every": 3}}, "'autosparse' has no option 'every': it has none"),
        ({"options": 3}, "options = 3: expected a dict"),
        ({"method": "nm", "options": {"k": 3}}, "'nm' has no option 'k': it has n, m, decay"),
        ({"method": "nm", "options": {"n": 4}}, "'n'. = 4 is not allowed: use less than m = 4"),
        ({"method": "nm", "options": {"n": 0}}, "'n'. = 0 is not allowed: use a whole number, 1 or more"),
        ({"method": "gmp", "target_sparsity": 0.5, "options": {"until": 0}}, "'until'. = 0 is not allowed"),
        ({"method": "set", "target_sparsity": 0.5, "options": {"drop_fraction": 2}}, "'drop_fraction'. = 2"),
        ({"method": "itop", "target_sparsity": 0.5, "options": {"growth": "x"}}, "'growth'. = 'x' is not allowed"),
        ({"method": "snfs", "target_sparsity": 0.5, "options": {"momentum": 1}}, "'momentum'. = 1 is not allowed"),
        ({"method": "mest", "target_sparsity": 0.5, "options": {"mutation": 0}}, "'mutation'. = 0 is not allowed"),
        ({"method": "mest", "target_sparsity": 0.5, "options": {"soft": 1}}, "'soft'. = 1 is not allowed"),
        ({"method": "mest", "target_sparsity": 0.5, "options": {"gradient": -1}}, "'gradient'. = -1 is not allowed"),
        ({"method": "swat", "target_sparsity": 0.5, "options": {"every": 0}}, "'every'. = 0 is not allowed"),
        ({"method": "swat", "target_sparsity": 0.5, "options": {"activations": 1}}, "'activations'. = 1 is not"),
        ({"method": "topkast", "target_sparsity": 0.5, "options": {"power": 0.5}}, "'power'. = 0.5 is not allowed"),
        ({"method": "topkast", "target_sparsity": 0.5, "options": {"l2": -1}}, "'l2'. = -1 is not allowed"),
        ({"method": "dst", "options": {"penalty": -1}}, "'penalty'. = -1 is not allowed"),
        ({"method": "nm", "target_sparsity": 0.5}, "target_sparsity = 0.5 has no effect on method 'nm'.*dst, gmp"),
        ({"method": "ltp", "options": {"temperature": 0}}, "'temperature'. = 0 is not allowed"),
        ({"method": "ltp", "options": {"penalty": -1}}, "'penalty'. = -1 is not allowed"),
        ({"method": "continuous", "options": {"temperature": 0.5}}, "'temperature'. = 0.5 is not allowed"),
        ({"method": "continuous", "options": {"init": None}}, "'init'. = None is not allowed"),
        ({"method": "continuous", "options": {"penalty": -1}}, "'penalty'. = -1 is not allowed"),
        ({"method": "scl", "options": {"init": 0}}, "'init'. = 0 is not allowed"),
        ({"method": "scl", "options": {"penalty": -1}}, "'penalty'. = -1 is not allowed"),
        ({"method": "nm", "options": {"decay": -1}}, "'decay'. = -1 is not allowed"),
        ({"method": "nm", "options": {"m": 1}}, "'m'. = 1 is not allowed"),
        ({"method": "gmp", "target_sparsity": 0.5, "options": {"every": 0.5}}, "'every'. = 0.5 is not allowed"),
        ({"method": "gmp", "target_sparsity": 1.0}, "target_sparsity = 1.0 is not allowed"),
        ({"method": "set", "target_sparsity": 0.5, "sparsity_distribution": "x"}, "'uniform', 'erk'"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        AutoSparseConfig(**settings)

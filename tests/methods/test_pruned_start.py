"""A pruned model is pruned further: no method falls below the zeros that it has."""

import copy
import logging

import pytest
import torch
from torch import nn

from hf_autosparse import NMConfig, SparseConfig, SparseTraining, layer_sparsity, sparse_layers, sparsify, sparsity
from hf_autosparse.methods import Budget, Target, available_methods, config_class
from hf_autosparse.methods.distributions import erk, not_below, uniform
from hf_autosparse.methods.schedules import cubic_sparsity
from hf_autosparse.training.target import allowed_range
from pruned import pruned
from tiny import assert_same_state

METHODS = [name for name in available_methods() if name != "fixed_mask"]
STEPS = 24


def config(method: str, target: float | None = 0.8) -> SparseConfig:
    found = config_class(method)
    settings = {"method": method, "first_last": "none"}
    if issubclass(found, Budget | Target) and target is not None:
        settings["target_sparsity"] = target
    settings |= {"n": 1, "m": 4} if method == "nm" else {}
    settings |= {"every": 3} if hasattr(found, "every") else {}
    settings |= {"threshold_init": {"sparsity": 0.5}} if method in ("autosparse", "str") else {}
    return SparseConfig.from_dict(settings)


def network(zeros: float = 0.7, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return pruned(nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 8)), zeros)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, first: int = 0, last: int = STEPS) -> list[float]:
    """The sparsity before the first step and after each."""
    training = SparseTraining(model, steps=STEPS, steps_per_epoch=8, start_step=first)
    seen = [sparsity(model)]
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        inputs, labels = torch.randn(32, 16, generator=generator), torch.randint(8, (32,), generator=generator)
        training.begin_step()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        training.before_optimizer_step()
        optimizer.step()
        training.end_step(optimizer)
        optimizer.zero_grad()
        seen.append(sparsity(model))
    return seen


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), 3e-3)


@pytest.mark.parametrize("method", METHODS)
def test_no_method_falls_below_the_zeros_that_are_there(method):
    model = network()
    start = sparsity(model)
    sparsify(model, config(method))
    seen = train(model, adam(model))
    assert min(seen) >= start - 1e-3
    wanted = 0.75 if method == "nm" else 0.8
    assert seen[-1] == pytest.approx(wanted, abs=0.01)


@pytest.mark.parametrize("method", [m for m in METHODS if issubclass(config_class(m), Target)])
def test_without_a_target_too(method):
    model = network()
    start = sparsity(model)
    sparsify(model, config(method, target=None))
    assert min(train(model, adam(model))) >= start - 1e-3


@pytest.mark.parametrize("method", [m for m in METHODS if issubclass(config_class(m), Budget)])
def test_budgets_start_inside_the_mask_that_is_there(method):
    model = network()
    before = {name: module.weight != 0 for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    sparsify(model, config(method))
    for name, layer in sparse_layers(model).items():
        assert not (layer.sparsifier.kept & ~before[name]).any()


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_goes_on_from_the_first_start(method):
    """Whatever zeros the model has that it is resumed with."""
    whole, first = (sparsify(network(), config(method)) for _ in range(2))
    train(whole, adam(whole))
    before = adam(first)
    train(first, before, 0, 10)
    for zeros in (0.0, 0.7):
        resumed = sparsify(network(zeros, seed=1), config(method))
        after = adam(resumed)
        resumed.load_state_dict(copy.deepcopy(first.state_dict()))
        after.load_state_dict(copy.deepcopy(before.state_dict()))
        train(resumed, after, 10)
        assert_same_state(whole, resumed)


@pytest.mark.parametrize("method", METHODS)
def test_a_dense_start_resumes_with_a_pruned_model(method):
    """As `from_pretrained(checkpoint)` gives it."""
    whole, first = (sparsify(network(0.0), config(method)) for _ in range(2))
    assert not [name for name in whole.state_dict() if name.endswith(".zeros")]
    train(whole, adam(whole))
    before = adam(first)
    train(first, before, 0, 10)
    resumed = sparsify(network(0.7), config(method))
    after = adam(resumed)
    resumed.load_state_dict(copy.deepcopy(first.state_dict()))
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    train(resumed, after, 10)
    assert_same_state(whole, resumed)


@pytest.mark.parametrize("method", ["gmp", "rigl", "autosparse", "scl"])
def test_a_target_below_what_is_there_changes_nothing_and_is_said(method, caplog):
    model = network()
    start = layer_sparsity(model)
    with caplog.at_level(logging.WARNING):
        sparsify(model, config(method, target=0.4))
    assert "70.0 % of the sparse layers' weights are 0 already, more than target_sparsity = 0.4" in caplog.text
    train(model, adam(model))
    assert sparsity(model) == pytest.approx(sum(start.values()) / len(start), abs=0.01)


def test_n_of_m_refuses_what_it_would_let_grow_back():
    with pytest.raises(ValueError, match="layer 0: 69.9% of its weights are 0, and 2 of 4 would let some grow back"):
        sparsify(network(), NMConfig(first_last="none"))


def test_the_ramp_starts_at_what_is_there():
    assert [cubic_sparsity(p, 0.9, 0.7) for p in (0.0, 0.5, 1.0)] == pytest.approx([0.7, 0.875, 0.9])
    assert allowed_range(0.9, 0.5, 0.0, start=0.7) == (0.7, 1.0)
    assert allowed_range(0.9, 0.5, 0.25, start=0.7) == pytest.approx((0.875, 0.9125))
    assert allowed_range(0.5, 0.5, 1.0, start=0.7) == (0.7, 0.7)


def test_no_share_falls_below_its_layers_zeros():
    shapes = {"a": (10, 10), "b": (10, 10), "c": (10, 10)}
    assert not_below(uniform, shapes, 0.6, {}) == uniform(shapes, 0.6)
    assert not_below(uniform, shapes, 0.6, {"a": 0.8, "b": 0.5}) == pytest.approx({"a": 0.8, "b": 0.5, "c": 0.5})
    assert not_below(uniform, shapes, 0.6, {"a": 0.8, "b": 0.55}) == pytest.approx({"a": 0.8, "b": 0.55, "c": 0.45})
    assert not_below(uniform, shapes, 0.2, dict.fromkeys(shapes, 0.7)) == dict.fromkeys(shapes, 0.7)
    mixed = {"a": (10, 10), "b": (40, 40)}
    shares = not_below(erk, mixed, 0.6, {"a": 0.5})
    assert shares["a"] >= 0.5 and shares["a"] * 100 + shares["b"] * 1600 == pytest.approx(0.6 * 1700)


def test_a_few_zeros_are_chance():
    model = network(0.0)
    model[0].weight.data[0, 0] = 0
    sparsify(model, config("gmp"))
    assert all(layer.sparsifier.zeros is None for layer in sparse_layers(model).values())

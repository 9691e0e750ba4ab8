"""`target_sparsity` of the methods that learn thresholds or masks."""

import copy
import math

import pytest
import torch
from torch import nn

from hf_autosparse import SparseConfig, finalize, layer_sparsity, sparse_layers, sparsify, sparsity
from hf_autosparse.functional import boundary, sampling_stride
from hf_autosparse.methods import Progress, Target, available_methods, config_class
from hf_autosparse.training.target import SAMPLE, allowed_range, hold_target
from tiny import assert_same_state, tiny_trainer

LEARNING = [name for name in available_methods() if issubclass(config_class(name), Target)]
SETTINGS = {"ltp": {"penalty": 1e-4}, "dst": {"penalty": 0.01}}


def config(method: str, **changes) -> SparseConfig:
    settings = {"method": method, "first_last": "none", "target_sparsity": 0.8}
    return SparseConfig.from_dict(settings | SETTINGS.get(method, {}) | changes)


def test_all_that_learn_take_a_target():
    assert LEARNING == ["autosparse", "continuous", "dst", "ltp", "scl", "str"]


def test_the_allowed_range_narrows_to_the_target():
    assert allowed_range(0.8, 0.5, 0.0) == (0.0, 1.0)
    assert allowed_range(0.8, 0.5, 0.25) == pytest.approx((0.7, 0.825))  # 1 - (1 - 1/2)^3 of the way
    assert allowed_range(0.8, 0.5, 0.5) == allowed_range(0.8, 0.5, 1.0) == pytest.approx((0.8, 0.8))
    assert allowed_range(0.8, 0.0, 0.0) == pytest.approx((0.8, 0.8))


def test_the_boundary_lies_midway():
    margins = torch.tensor([4.0, -1.0, 2.0, 1.0])
    assert [boundary(margins, x).item() for x in (1, 2, 3)] == [0.0, 1.5, 3.0]
    assert boundary(margins, 0).item() == -math.inf
    assert boundary(margins, 4).item() == 3.0  # one is kept


def test_the_boundary_is_finite_beside_weights_without_a_choice():
    margins = torch.tensor([-math.inf, -math.inf, 1.0, 3.0, math.inf])
    assert [boundary(margins, x).item() for x in (1, 2, 3, 4)] == [1.0, 1.0, 2.0, 3.0]


def test_the_sample_meets_every_position_of_a_kernel():
    assert sampling_stride(SAMPLE, SAMPLE) == 1
    for count in (3 * SAMPLE, 4 * SAMPLE, 100 * SAMPLE):
        stride = sampling_stride(count, SAMPLE)
        assert stride >= count // SAMPLE and math.gcd(stride, 2 * 3 * 5 * 7) == 1


@pytest.mark.parametrize("granularity", ["layer", "channel"])
def test_a_shift_prunes_what_has_a_smaller_margin(granularity):
    layer = nn.Linear(20, 10, bias=False)
    layer.weight.data[0, :2] = torch.tensor([0.0, 3.0])
    sparsify(layer, config("autosparse", threshold_granularity=granularity))
    check_shift(layer)


@pytest.mark.parametrize("method", LEARNING)
@pytest.mark.parametrize("shape", ["linear", "conv"])
def test_a_shift_prunes_what_has_a_smaller_margin_for_every_method(method, shape):
    layer = nn.Linear(20, 10) if shape == "linear" else nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    check_shift(sparsify(layer, config(method)))


@torch.no_grad()
def check_shift(layer):
    sparsifier = layer.sparsifier
    for name, parameter in sparsifier.named_parameters():
        parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    margin = sparsifier.margin(layer.weight, 1).clone()  # it may be a view of the scores
    assert torch.equal(margin > 0, sparsifier.mask(layer.weight).flatten())
    assert torch.equal(sparsifier.margin(layer.weight, 7), margin[::7])
    shift = boundary(margin, round(0.7 * margin.numel()))
    sparsifier.raise_threshold(shift)
    kept = sparsifier.mask(layer.weight)
    assert torch.equal(kept.flatten(), margin > shift)
    assert 1 - kept.float().mean().item() == pytest.approx(0.7, abs=0.5 / kept.numel() + 1e-6)


def two_layers(**changes) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 50))
    model[1].weight.data *= 0.1  # which a common threshold would prune first
    return sparsify(model, config("str", threshold_init={"sparsity": 0.5}, **changes))


def hold(model: nn.Module, step: int, of: int = 100, target: float = 0.8, ramp: float = 0.5) -> float:
    hold_target(list(sparse_layers(model).values()), target, ramp, Progress(0.0, 1.0, step, of))
    return sparsity(model)


def test_it_is_left_alone_inside_the_range_and_between_two_looks():
    model = two_layers()
    before = sparsity(model)
    assert hold(model, 4) == before  # 0.18 to 0.96 are allowed
    assert hold(model, 51) == before  # no look at this step
    assert hold(model, 52) == pytest.approx(0.8, abs=1e-3)


def test_it_is_taken_to_the_nearer_end_of_the_range():
    model = two_layers()
    assert hold(model, 20) == pytest.approx(0.6272, abs=1e-3)
    assert hold(model, 20, target=0.1) == pytest.approx(0.2944, abs=1e-3)


def test_the_last_step_always_looks():
    assert hold(two_layers(), 99, of=99) == pytest.approx(0.8, abs=1e-3)


def test_layers_keep_their_shares():
    model = two_layers()
    hold(model, 100)
    shares = layer_sparsity(model)
    # The shift multiplies small thresholds by the same factor, and both layers had theirs at the same quantile.
    assert shares["0"] == pytest.approx(shares["1"], abs=0.03)


def test_a_layer_at_its_limit_leaves_the_rest_to_the_others():
    model = two_layers(max_layer_sparsity=0.85)
    with torch.no_grad():
        model[1].sparsifier.threshold.fill_(0.0)  # T = 1/2: it prunes all
    hold(model, 100)
    layers = sparse_layers(model)
    for layer in layers.values():
        layer.sparsifier.limit_sparsity(layer.weight, 0.85)
    assert layer_sparsity(model)["1"] == pytest.approx(0.85, abs=1e-3)
    assert sparsity(model) == pytest.approx(0.8, abs=1e-3)


def test_a_sample_of_the_weights_is_near(monkeypatch):
    monkeypatch.setattr("hf_autosparse.training.target.SAMPLE", 500)
    model = two_layers()
    assert hold(model, 96) == pytest.approx(0.8, abs=0.03)
    assert hold(model, 100) == pytest.approx(0.8, abs=1e-3)


def test_already_pruned_weights_stay_pruned():
    model = two_layers()
    model[0].weight.data[:20] = 0.0  # 800 of 2,700, where 10 % would be 270
    hold(model, 100, target=0.1)
    assert all(layer.sparsifier.is_finite() for layer in sparse_layers(model).values())
    assert sparsity(model) == pytest.approx(800 / 2700, abs=1e-3)


@pytest.mark.parametrize("method", LEARNING)
def test_training_ends_at_the_target(tmp_path, method):
    trainer = tiny_trainer(tmp_path, config=config(method))
    trainer.train()
    assert sparsity(trainer.model) == pytest.approx(0.8, abs=0.005)
    assert sparsity(finalize(copy.deepcopy(trainer.model))) == pytest.approx(0.8, abs=0.005)


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    whole = tiny_trainer(tmp_path / "whole", config=config("autosparse"), max_steps=8)
    whole.train()
    saving = {"save_strategy": "steps", "save_steps": 5}
    tiny_trainer(tmp_path / "cut", config=config("autosparse"), max_steps=8, **saving).train()
    second = tiny_trainer(tmp_path / "cut", config=config("autosparse"), max_steps=8)
    second.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-5"))
    assert_same_state(whole.model, second.model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_sparsity": 1.0}, "AutoSparseConfig.target_sparsity = 1.0 is not allowed"),
        ({"target_sparsity": 0.995}, "target_sparsity = 0.995 is not allowed: .*max_layer_sparsity = 0.99"),
        ({"target_sparsity": 0.8, "target_ramp": 1.5}, "AutoSparseConfig.target_ramp = 1.5 is not allowed"),
        ({"target_ramp": 0.5}, "target_ramp = 0.5 has no effect without target_sparsity"),
        (
            {"method": "rigl", "target_sparsity": 0.8, "target_ramp": 0.5},
            "RigLConfig has no field 'target_ramp': .*autosparse, continuous",
        ),
        (
            {"target_sparsity": 0.8, "sparsity_distribution": "erk"},
            "AutoSparseConfig has no field 'sparsity_distribution': .*gmp, itop",
        ),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        SparseConfig.from_dict({"method": "autosparse"} | settings)

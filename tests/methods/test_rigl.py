"""RigL's update rule, by hand, and a resumed run."""

import pytest
import torch
from torch import nn

from hf_autosparse import RigLConfig, SETConfig, sparse_layers, sparsify, sparsity
from tiny import assert_same_state, tiny_trainer
from update_rules import F, T, linear, step, update


def test_rigl_grows_where_the_gradient_is_largest():
    config = RigLConfig(first_last="none", target_sparsity=0.5, every=1, drop_fraction=1.0)
    layer = sparsify(linear([[1.0, 2, 3, 4]]), config)
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
    layers = []
    for config in (SETConfig, RigLConfig):
        torch.manual_seed(3)
        layers.append(sparsify(nn.Linear(12, 8, bias=False), config(first_last="none", target_sparsity=0.6, every=1)))
    rigl = layers[1].sparsifier
    rigl.collect_gradient(rigl.random_score(layers[1].weight, step=7))
    for layer in layers:
        update(layer, 7)
    assert torch.equal(layers[0].sparsifier.kept, layers[1].sparsifier.kept)


def test_rigl_holds_no_gradient_between_updates():
    layer = sparsify(nn.Linear(8, 8), RigLConfig(first_last="none", target_sparsity=0.6, every=5))
    for number in range(12):
        layer.sparsifier.begin_step(step(number))
        layer(torch.ones(2, 8)).sum().backward()
        assert (layer.sparsifier._gradient is not None) == (number % 5 == 4)
        update(layer, number + 1)
        assert layer.sparsifier._gradient is None


def test_trainer_resumes_a_method_with_masks_exactly(tmp_path):
    config = RigLConfig(first_last="none", target_sparsity=0.6, every=3)
    whole = tiny_trainer(tmp_path / "a", config=config, max_steps=12, save_strategy="steps", save_steps=6)
    whole.train()
    resumed = tiny_trainer(tmp_path / "b", config=config, max_steps=12)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-6"))
    assert_same_state(whole.model, resumed.model)
    assert sparsity(whole.model) == pytest.approx(0.6, abs=0.005)
    moments = whole.trajectory.moments
    assert resumed.trajectory.moments == moments
    layer = next(iter(sparse_layers(whole.model).values()))
    dense, active = layer.weight.numel(), int(layer.sparsifier.kept.sum())
    assert moments[0].backward_sparsity[0] == pytest.approx(1 - (active + round((dense - active) / 3)) / dense)
    assert moments[-1].backward_sparsity == moments[-1].sparsity and moments[-1].alpha is None

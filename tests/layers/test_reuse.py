"""The micro-batches of an optimizer step share the effective weight."""

import copy
import pickle

import pytest
import torch
from transformers import TrainerCallback

from hf_autosparse import AutoSparseConfig, kernels, sparse_layers, sparsify
from hf_autosparse.layers.sparse import SparseLayer
from tiny import assert_same_state, tiny_trainer


class Watch(TrainerCallback):
    """Whether a layer kept its effective weight, after each step."""

    def __init__(self):
        self.kept: list[bool] = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.kept.append(any("_effective" in vars(layer) for layer in sparse_layers(model).values()))


def train(directory, monkeypatch, *, reuses: bool, **changes):
    """A trained model, and how often the kernel computed an effective weight in training."""
    computed = []
    forward = kernels.threshold.forward

    def counting(library, weight, *rest):
        computed.append(weight.requires_grad)
        return forward(library, weight, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(kernels.threshold, "forward", counting)
        if not reuses:
            patch.setattr(SparseLayer, "_effective_weight", lambda layer: layer.sparsifier(layer.weight))
        config = AutoSparseConfig(threshold_init={"sparsity": 0.3}, alpha_update="step")
        settings = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "max_steps": 3}
        trainer = tiny_trainer(directory, config=config, **(settings | changes))
        trainer.train()
    return trainer.model, sum(computed)


@pytest.mark.skipif(
    kernels.library() is None, reason=f"needs the C kernels, and this machine has none: {kernels.status()}"
)
def test_it_is_computed_once_per_step_and_changes_nothing(tmp_path, monkeypatch):
    with_it, computed = train(tmp_path / "a", monkeypatch, reuses=True)
    without, every_time = train(tmp_path / "b", monkeypatch, reuses=False)
    assert_same_state(with_it, without)
    layers = len(sparse_layers(with_it))
    assert every_time - computed == layers * 3 * (4 - 1)


@pytest.mark.parametrize("accumulated", [1, 4])
def test_nothing_is_kept_without_accumulation_or_after_training(tmp_path, monkeypatch, accumulated):
    watch = Watch()
    changes = {"gradient_accumulation_steps": accumulated, "callbacks": [watch]}
    model, _ = train(tmp_path, monkeypatch, reuses=True, **changes)
    assert watch.kept == [accumulated > 1] * 3
    assert not any(layer.reuses or "_effective" in vars(layer) for layer in sparse_layers(model).values())


def layer_with_reuse():
    layer = sparsify(torch.nn.Linear(8, 8), AutoSparseConfig(first_last="none")).train()
    layer.reuses = True
    return layer


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.weight.data.mul_(2),
        lambda layer: layer.weight.data.copy_(torch.randn(8, 8)),
        lambda layer: layer.sparsifier.threshold.data.add_(0.5),
    ],
)
def test_a_change_by_an_optimizer_or_in_place_is_noticed(change):
    layer = layer_with_reuse()
    x = torch.randn(2, 8)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    layer(x).sum().backward()
    change(layer)  # as foreach optimizers do, without a new version
    optimizer.step()
    assert torch.equal(layer.current_weight(), layer.sparsifier(layer.weight))
    with torch.no_grad():
        layer.weight += 1.0
    assert torch.equal(layer.current_weight(), layer.sparsifier(layer.weight))


def test_gradients_of_all_micro_batches_arrive():
    layer, x = layer_with_reuse(), torch.randn(3, 2, 8)
    plain = copy.deepcopy(layer)
    plain.reuses = False
    for part in x:
        for each in (layer, plain):
            each(part).square().sum().backward()
    assert torch.equal(layer.weight.grad, plain.weight.grad)
    assert torch.equal(layer.sparsifier.threshold.grad, plain.sparsifier.threshold.grad)


def test_it_is_no_state():
    layer = layer_with_reuse()
    layer(torch.randn(2, 8))
    assert "_effective" in vars(layer)
    assert "_effective" not in vars(copy.deepcopy(layer)) and "_effective" not in vars(
        pickle.loads(pickle.dumps(layer))
    )
    assert not any("effective" in key for key in layer.state_dict())

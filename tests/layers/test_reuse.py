"""The micro-batches of an optimizer step share the effective weight."""

import copy
import pickle

import pytest
import torch
from transformers import TrainerCallback

from hf_autosparse import AutoSparseConfig, SparseTraining, kernels, sparse_layers, sparsify
from hf_autosparse.kernels.cpu import threshold as c_threshold
from hf_autosparse.layers.sparse import SparseLayer
from hf_autosparse.methods import Progress
from tiny import assert_same_state, tiny_trainer


class Watch(TrainerCallback):
    """Whether layers keep their effective weight: before the penalties of each step, and after it."""

    def __init__(self):
        self.kept: list[bool] = []
        self.open_after: list[bool] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        steps = [layer.open_step for layer in sparse_layers(model).values()]
        self.kept.append(all(step is not None and step.effective is not None for step in steps))

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.open_after.append(any(layer.open_step is not None for layer in sparse_layers(model).values()))


def train(directory, monkeypatch, *, reuses: bool, **changes):
    """A trained model, and how often the kernel computed an effective weight in training."""
    computed = []
    forward = c_threshold.forward

    def counting(library, weight, *rest):
        computed.append(weight.requires_grad)
        return forward(library, weight, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(c_threshold, "forward", counting)
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
    assert watch.open_after == [False] * 3  # it is dropped before the optimizer's step
    assert not any(layer.open_step for layer in sparse_layers(model).values())


def test_nothing_is_kept_after_a_run_that_ends_inside_a_step(tmp_path):
    layer = layer_in_step()
    layer(torch.randn(2, 8))
    training = SparseTraining(layer, steps=4, steps_per_epoch=4, accumulation=2)
    training.begin_step()
    layer(torch.randn(2, 8))
    assert layer.open_step.effective is not None
    training.close()
    assert layer.open_step is None
    with pytest.raises(RuntimeError, match=r"before_optimizer_step\(\) without an open step: call begin_step\(\)"):
        training.before_optimizer_step()


def layer_in_step(micro_batches=2):
    layer = sparsify(torch.nn.Linear(8, 8), AutoSparseConfig(first_last="none")).train()
    layer.begin_step(Progress(epoch=0.0, epochs=1.0, step=0, steps=10), micro_batches)
    return layer


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.weight.detach().mul_(2),
        lambda layer: layer.sparsifier.threshold.detach().add_(0.5),
        lambda layer: setattr(layer.weight, "data", torch.randn(8, 8)),
        lambda layer: layer.load_state_dict({name: value * 0.9 for name, value in layer.state_dict().items()}),
    ],
    ids=["weight", "threshold", "another tensor", "load_state_dict"],
)
def test_an_edit_inside_a_step_is_noticed(change):
    layer = layer_in_step()
    layer(torch.randn(2, 8)).sum().backward()
    before = layer.open_step.effective
    assert layer.current_weight().data_ptr() != 0 and layer.open_step.effective is before
    change(layer)
    assert torch.equal(layer.current_weight(), layer.sparsifier(layer.weight))
    assert layer.open_step.effective is not before


def test_outside_a_step_nothing_is_kept():
    """So that an optimizer may write as it likes, through `.data` too."""
    layer, x = layer_in_step(), torch.randn(2, 8)
    layer(x)
    layer.before_optimizer_step()
    layer.weight.data.mul_(2)
    assert torch.equal(layer.current_weight(), layer.sparsifier(layer.weight))
    layer.end_step(Progress(epoch=0.1, epochs=1.0, step=1, steps=10))
    layer.weight.data.mul_(2)
    assert torch.equal(layer.current_weight(), layer.sparsifier(layer.weight))
    assert layer.open_step is None


def test_gradients_of_all_micro_batches_arrive():
    layer, x = layer_in_step(), torch.randn(3, 2, 8)
    plain = copy.deepcopy(layer)
    assert plain.open_step is None
    for part in x:
        for each in (layer, plain):
            each(part).square().sum().backward()
    assert torch.equal(layer.weight.grad, plain.weight.grad)
    assert torch.equal(layer.sparsifier.threshold.grad, plain.sparsifier.threshold.grad)


def test_it_is_no_state():
    layer = layer_in_step()
    layer(torch.randn(2, 8))
    assert layer.open_step.effective is not None
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin.open_step is None
    assert set(layer.state_dict()) == {"weight", "bias", "sparsifier.at_guard", "sparsifier.threshold"}

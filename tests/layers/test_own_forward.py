"""Layers whose instance has a forward of its own, which would run instead of the sparse layer's."""

import functools

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import remove_hook_from_module
from torch import nn

from hf_autosparse import AutoSparseConfig, SparseTraining, finalize, sparsify
from tiny import tiny_trainer, tiny_translator

CONFIG = AutoSparseConfig(first_last="none")
MESSAGE = "forward of its own, set by a hook .*remove_hook_from_module"


def net():
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))


def watched(layer):
    layer.forward = functools.partial(type(layer).forward, layer)


def test_sparsify_refuses_them_and_changes_nothing():
    model = net()
    watched(model[2])
    with pytest.raises(ValueError, match=f"'2' has a {MESSAGE}.*, or list such layers in dense_modules"):
        sparsify(model, CONFIG)
    assert [type(module) for module in model] == [nn.Linear, nn.ReLU, nn.Linear]
    sparsify(model, AutoSparseConfig(first_last="none", dense_modules=["2"]))


def test_the_hooks_of_accelerate_are_refused_and_the_remedy_works():
    model = cpu_offload(net(), execution_device=torch.device("cpu"))
    with pytest.raises(ValueError, match=f"'0', '2' has a {MESSAGE}"):
        sparsify(model, CONFIG)
    remove_hook_from_module(model, recurse=True)
    assert sparsify(model, CONFIG)(torch.ones(1, 4)).shape == (1, 4)


def test_a_forward_that_comes_later_is_found_at_the_next_step():
    model = sparsify(net(), CONFIG)
    training = SparseTraining(model, steps=3, steps_per_epoch=3)
    training.begin_step()
    watched(model[0])
    with pytest.raises(ValueError, match=f"'0' has a {MESSAGE}"):
        training.begin_step()
    del model[0].forward
    training.begin_step()
    finalize(model)


def test_the_trainer_finds_it_at_the_first_step(tmp_path):
    model = tiny_translator()
    trainer = tiny_trainer(tmp_path, model=model, max_steps=1)
    watched(model.model.encoder.layers[0].fc1)
    with pytest.raises(ValueError, match=f"'model.encoder.layers.0.fc1' has a {MESSAGE}"):
        trainer.train()


def test_a_model_of_one_layer_may_be_wrapped_by_mixed_precision():
    model = sparsify(nn.Linear(4, 4), CONFIG)
    training = SparseTraining(model, steps=3, steps_per_epoch=3)
    model.forward = torch.autocast("cpu", torch.bfloat16)(model.forward)
    training.begin_step()

"""`SparseTraining` in a plain loop does what the callback does under Trainer."""

import doctest
import logging
import subprocess
import sys

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback

import drive
from hf_autosparse import (
    AutoSparseCallback,
    AutoSparseConfig,
    LTPConfig,
    RigLConfig,
    SparseTraining,
    sparse_layers,
    sparsify,
    sparsity,
)
from hf_autosparse.training import driver
from tiny import assert_same_state, tiny_arguments, tiny_pairs, tiny_translator

METHODS = {
    "autosparse": AutoSparseConfig(target_sparsity=0.7, alpha_init=0.5, alpha_schedule="linear"),
    "rigl": RigLConfig(target_sparsity=0.7, every=2),
    "ltp": LTPConfig(target_sparsity=0.7, penalty=1e-4),  # a penalty before each step
}


class Recording(Trainer):
    """Keeps the batches that it trained on; each loss counts half, whatever the number of its tokens."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.batches.append(inputs)
        loss = model.train()(**inputs).loss / 2
        loss.backward()
        return loss.detach()


class Alphas(TrainerCallback):
    def __init__(self):
        self.seen = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.seen.append([layer.sparsifier.alpha for layer in sparse_layers(model).values()])


def without_dropout(model):
    for module in model.modules():
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            if hasattr(module, name):
                setattr(module, name, 0.0)
    return model


@pytest.mark.parametrize("name", METHODS)
def test_a_plain_loop_does_what_trainer_does(tmp_path, name):
    """To the bit: two micro-batches a step, a learning rate that does not change, no clipping."""
    config = METHODS[name]
    changes = {"gradient_accumulation_steps": 2, "num_train_epochs": 2, "max_grad_norm": 0.0}
    arguments = tiny_arguments(tmp_path, lr_scheduler_type="constant", **changes)
    models = [sparsify(without_dropout(tiny_translator()), config) for _ in range(2)]
    assert_same_state(*models)
    optimizers = [torch.optim.SGD(model.parameters(), 0.05, momentum=0.9) for model in models]
    alphas = Alphas()
    trainer = Recording(
        models[0],
        arguments,
        train_dataset=tiny_pairs(40),
        callbacks=[AutoSparseCallback(), alphas],
        optimizers=(optimizers[0], torch.optim.lr_scheduler.ConstantLR(optimizers[0], factor=1.0)),
    )
    trainer.batches = []
    trainer.train()

    model, optimizer, seen = models[1].train(), optimizers[1], []
    steps = trainer.state.global_step
    assert len(trainer.batches) == 2 * steps
    training = SparseTraining(model, steps=steps, steps_per_epoch=steps // 2, accumulation=2)
    for step in range(steps):
        training.begin_step()
        for batch in trainer.batches[2 * step : 2 * step + 2]:
            (model(**batch).loss / 2).backward()
        training.before_optimizer_step()
        seen.append([layer.sparsifier.alpha for layer in training.layers.values()])
        optimizer.step()
        training.end_step(optimizer)
        optimizer.zero_grad()
    assert seen == alphas.seen
    assert_same_state(*models)


def test_the_example_of_the_docstring_runs():
    results = doctest.testmod(driver)
    assert results.attempted >= 10 and results.failed == 0


def test_a_resumed_loop_is_the_uninterrupted_one():
    config = RigLConfig(first_last="none", target_sparsity=0.5, every=2)
    whole, first, second = (drive.sparse_net(config, seed) for seed in (0, 0, 1))
    drive.drive(whole, drive.optimizer_of(whole), 0, 8)
    before = drive.optimizer_of(first)
    drive.drive(first, before, 0, 5)
    after = drive.optimizer_of(second)
    second.load_state_dict(first.state_dict())
    after.load_state_dict(before.state_dict())
    drive.drive(second, after, 5, 8)
    assert_same_state(whole, second)


def test_a_wrapped_model_and_a_part_of_one_can_be_driven():
    part = sparsify(nn.Linear(8, 8), AutoSparseConfig(first_last="none", target_sparsity=0.5))
    model = nn.Sequential(nn.Linear(8, 8), part)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    training = SparseTraining(model, steps=4, steps_per_epoch=4)
    for _ in range(4):
        training.begin_step()
        model(torch.randn(3, 8)).sum().backward()
        training.before_optimizer_step()
        optimizer.step()
        training.end_step(optimizer)
        optimizer.zero_grad()
    assert sparsity(part) == pytest.approx(0.5, abs=0.02)


def test_the_guard_holds_a_layer_and_says_so_once(caplog):
    model = sparsify(nn.Linear(40, 50), AutoSparseConfig(first_last="none", max_layer_sparsity=0.9))
    model.sparsifier.threshold.data.fill_(5.0)
    training = SparseTraining(model, steps=40, steps_per_epoch=40, start_step=20)
    with caplog.at_level(logging.WARNING):
        training.guard()
        assert sparsity(model) == pytest.approx(0.9)
        assert model.sparsifier.at_guard.item()
        model.sparsifier.threshold.data.fill_(5.0)
        training.guard()
    (message,) = [m for m in caplog.messages if "is held at" in m]
    assert "reached sparsity 1.0000 at step 20; it is held at max_layer_sparsity = 0.9" in message
    model.sparsifier.threshold.data.fill_(-20.0)
    training.guard()
    assert not model.sparsifier.at_guard.item()


def one_layer(**settings):
    return sparsify(nn.Linear(4, 4), AutoSparseConfig(first_last="none", **settings))


def test_what_is_refused():
    with pytest.raises(ValueError, match="Linear has no sparse layer: call sparsify"):
        SparseTraining(nn.Linear(2, 2), steps=3)
    mixed = nn.Sequential(one_layer(), one_layer(target_sparsity=0.5))
    with pytest.raises(ValueError, match="different configurations: sparsify the whole model with one"):
        SparseTraining(mixed, steps=3, steps_per_epoch=3)
    with pytest.raises(ValueError, match="alpha_update='epoch' needs a training set with a length .steps_per_epoch."):
        SparseTraining(one_layer(alpha_schedule="linear", alpha_init=0.5), steps=3)
    sensible = {"steps": 3, "steps_per_epoch": 3, "accumulation": 1, "start_step": 0}
    for name, bad in [("steps", -1), ("steps_per_epoch", 1.5), ("accumulation", 0), ("start_step", -1)]:
        with pytest.raises(ValueError, match=f"{name} = {bad} is not allowed: use a whole number"):
            SparseTraining(one_layer(), **(sensible | {name: bad}))


def test_a_forgotten_begin_step_is_an_error():
    layer = one_layer()
    training = SparseTraining(layer, steps=3, steps_per_epoch=3)
    with pytest.raises(RuntimeError, match=r"before_optimizer_step\(\) without an open step: call begin_step\(\)"):
        training.before_optimizer_step()
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    training.begin_step()
    training.before_optimizer_step()
    training.end_step(optimizer)
    with pytest.raises(RuntimeError, match=r"end_step\(\) without an open step"):
        training.end_step(optimizer)


def test_it_needs_no_transformers():
    program = """
import sys
from torch import nn
from hf_autosparse import AutoSparseConfig, SparseTraining, sparsify
layer = sparsify(nn.Linear(4, 4), AutoSparseConfig(first_last="none"))
SparseTraining(layer, steps=2, steps_per_epoch=2).begin_step()
assert "transformers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)

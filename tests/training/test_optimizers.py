"""Optimizers with which a setting or a method would have no effect are refused before the first step."""

import pytest
import torch
from transformers import Trainer
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

import drive
from hf_autosparse import (
    AutoSparseCallback,
    AutoSparseConfig,
    FixedMaskConfig,
    GMPConfig,
    NMConfig,
    RigLConfig,
    SparseConfig,
    STRConfig,
    sparsify,
)
from pruned import pruned
from tiny import tiny_arguments, tiny_pairs, tiny_trainer, tiny_translator

REFUSED = {
    "autosparse": (AutoSparseConfig(threshold_lr=1e-3), "not threshold_lr and threshold_weight_decay"),
    "str": (STRConfig(), "not threshold_lr and threshold_weight_decay"),
    "nm": (NMConfig(), "gradients are used up before the method's penalty is added"),
    "rigl": (RigLConfig(target_sparsity=0.5), "its state for newly grown weights cannot start over"),
}


def layerwise(model: torch.nn.Module) -> LayerWiseDummyOptimizer:
    """As transformers makes `galore_adamw_layerwise` and `apollo_adamw_layerwise`."""
    each = {p: torch.optim.AdamW([p], 1e-2) for p in model.parameters()}

    def step(parameter: torch.Tensor) -> None:
        each[parameter].step()
        each[parameter].zero_grad()

    for parameter in each:
        parameter.register_post_accumulate_grad_hook(step)
    return LayerWiseDummyOptimizer(optimizer_dict=each, lr=1e-2)


def with_layerwise(tmp_path, config: SparseConfig, **settings):
    model = sparsify(pruned(tiny_translator()), config)
    optimizer = layerwise(model)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    arguments = tiny_arguments(tmp_path, max_steps=5, **settings)
    data = tiny_pairs(40)
    callbacks = [AutoSparseCallback()]
    return Trainer(model, arguments, train_dataset=data, callbacks=callbacks, optimizers=(optimizer, schedule))


@pytest.mark.parametrize("name", REFUSED)
def test_layerwise_optimizers_are_refused(name, tmp_path):
    config, reason = REFUSED[name]
    trainer = with_layerwise(tmp_path, config)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    with pytest.raises(ValueError, match=f"method '{name}' does not suit .*LayerWiseDummyOptimizer: .*{reason}"):
        trainer.train()
    assert all(torch.equal(old, p) for old, p in zip(before, trainer.model.parameters(), strict=True))


@pytest.mark.parametrize("config", [FixedMaskConfig(), GMPConfig(target_sparsity=0.6, every=1)])
def test_they_serve_the_methods_that_only_mask(config, tmp_path):
    trainer = with_layerwise(tmp_path, config)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train()
    assert not all(torch.equal(old, p) for old, p in zip(before, trainer.model.parameters(), strict=True))


def test_our_trainer_refuses_them_too(tmp_path):
    trainer = tiny_trainer(tmp_path, max_steps=5)
    trainer.optimizer_cls_and_kwargs = (LayerWiseDummyOptimizer, {"lr": 1e-2})
    with pytest.raises(ValueError, match="method 'autosparse' does not suit an optimizer that updates each parameter"):
        trainer.train()


class Lomo(torch.optim.SGD):
    def fused_backward(self, loss, lr):
        raise NotImplementedError


def test_lomo_is_known_by_its_backward():
    model = drive.sparse_net(AutoSparseConfig(first_last="none"))
    with pytest.raises(ValueError, match="during backward .*here Lomo: .*Use one that steps afterwards"):
        drive.drive(model, Lomo(model.parameters(), 0.1), 0, 1)

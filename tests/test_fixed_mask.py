"""method="fixed_mask": zeros stay zeros, the rest trains."""

import pytest
import torch
from torch import nn

from hf_autosparse import AutoSparseConfig, finalize, sparsify, sparsity
from tiny import tiny_trainer, tiny_translator

CONFIG = AutoSparseConfig(method="fixed_mask", first_last="none")


def pruned(model: nn.Module) -> nn.Module:
    """Magnitude pruning by plain torch, as any other tool leaves a model."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            with torch.no_grad():
                module.weight[module.weight.abs() < module.weight.abs().median()] = 0
    return model


def test_forward_and_gradient():
    layer = nn.Linear(3, 2, bias=False)
    layer.weight.data = torch.tensor([[0.0, 2.0, -0.0], [3.0, 0.0, -1.0]])
    sparsify(layer, CONFIG)
    layer(torch.tensor([[1.0, 10.0, 100.0]])).sum().backward()
    assert layer.weight.grad.tolist() == [[0, 10, 0], [1, 0, 100]]
    layer.weight.data.add_(1)  # as weight decay and momentum may do
    assert finalize(layer).weight.tolist() == [[0, 3, 0], [4, 0, 0]]


def test_changes_nothing_at_first():
    model, twin = pruned(tiny_translator()), pruned(tiny_translator())
    inputs = {"input_ids": torch.tensor([[5, 6, 7]]), "labels": torch.tensor([[8, 9]])}
    sparsify(twin, CONFIG)
    assert torch.equal(model.eval()(**inputs).logits, twin.eval()(**inputs).logits)
    assert sparsity(twin) == pytest.approx(0.5, abs=0.01)


def test_no_zero_is_lost_in_training(tmp_path):
    model = pruned(tiny_translator())
    zeros = {name: m.weight == 0 for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    before = {name: model.get_submodule(name).weight.detach().clone() for name in zeros}
    trainer = tiny_trainer(tmp_path, model=model, config=CONFIG, weight_decay=0.1)
    trainer.train()
    finalize(model)
    sparse = [name for name in zeros if name != "lm_head"]  # tied to the embedding, which stays dense
    for name in sparse:
        weight = model.get_submodule(name).weight
        assert not weight[zeros[name]].any(), name
        assert not torch.equal(weight, before[name]), name


def test_resuming_keeps_the_mask(tmp_path):
    """The mask is that of the pruned checkpoint, not of the weights at the resume."""
    settings = {"save_strategy": "epoch", "max_steps": 20}
    whole = tiny_trainer(tmp_path / "a", model=pruned(tiny_translator()), config=CONFIG, **settings)
    whole.train()
    resumed = tiny_trainer(tmp_path / "b", model=pruned(tiny_translator()), config=CONFIG, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-10"))
    for (name, a), b in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name

"""`FixedMaskConfig`: zeros stay zeros, the rest trains."""

import pytest
import torch
from torch import nn
from transformers import Trainer

from hf_autosparse import AutoSparseCallback, FixedMaskConfig, finalize, sparse_layers, sparsify, sparsity
from pruned import pruned
from tiny import history, tiny_arguments, tiny_pairs, tiny_trainer, tiny_translator

CONFIG = FixedMaskConfig()


def zeros(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p == 0 for name, p in model.named_parameters() if p.dim() == 2 and "shared" not in name}


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


def test_covers_the_first_and_the_last_layer():
    """Whose zeros would be lost under the first/last rule of the other methods."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    sparsify(pruned(model), CONFIG)
    assert list(sparse_layers(model)) == ["0", "2", "4"]


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd"])
def test_no_zero_is_lost_in_training(optim, tmp_path, caplog):
    model = pruned(tiny_translator())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    kept = zeros(model)
    settings = {"weight_decay": 0.1, "optim": optim, "optim_args": "momentum=0.9" if optim == "sgd" else None}
    trainer = tiny_trainer(tmp_path, model=model, config=CONFIG, **settings)
    trainer.train()
    finalize(model)
    for name, mask in kept.items():
        weight = model.get_parameter(name)
        assert not weight[mask].any(), name
        assert mask.any() and not torch.equal(weight, before[name]), name
    assert not caplog.records


def test_a_stock_trainer_keeps_them_too(tmp_path):
    model = pruned(tiny_translator())
    kept = zeros(model)
    sparsify(model, CONFIG)
    trainer = Trainer(model, tiny_arguments(tmp_path), train_dataset=tiny_pairs(40), callbacks=[AutoSparseCallback()])
    trainer.train()
    finalize(model)
    assert not [name for name, mask in kept.items() if model.get_parameter(name)[mask].any()]


def test_high_sparsity_is_no_affair_of_the_guard(tmp_path, caplog):
    """max_layer_sparsity is 0.99 by default; a pruned checkpoint may have more. Nothing is annealed either."""
    model = pruned(tiny_translator(), 0.997)
    trainer = tiny_trainer(tmp_path, model=model, config=CONFIG)
    trainer.train()
    logs = [entry for entry in history(trainer) if "loss" in entry]
    assert logs[-1]["sparsity"] == logs[0]["sparsity"] > 0.99
    assert {entry["layers_at_guard"] for entry in logs} == {0}
    assert not [entry for entry in logs if "alpha" in entry or "mean_threshold" in entry]
    assert not caplog.records


def test_zeros_that_are_not_kept_are_named(caplog):
    model = nn.ModuleDict({"table": nn.Embedding(5, 2, padding_idx=0), "up": nn.ConvTranspose2d(1, 2, 2)})
    model.update({"frozen": nn.Linear(2, 2), "layer": nn.Linear(2, 2), "other": nn.Linear(2, 2)})
    model = pruned(model)
    model["frozen"].requires_grad_(False)
    sparsify(model, CONFIG)
    assert not caplog.records  # a padding row gets no gradient
    finalize(model)
    model["table"].weight.data[3] = 0
    sparsify(model, FixedMaskConfig(dense_modules=["other"]))
    assert "table.weight (2 zeros), other.weight (2 zeros)" in caplog.text


def test_no_zero_at_all_is_said(caplog):
    model = sparsify(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), CONFIG)
    assert "finds no zero in 2 layers: is this the pruned checkpoint?" in caplog.text
    assert sparsity(model) == 0


def test_resuming_keeps_the_mask(tmp_path):
    """The mask is that of the pruned checkpoint, not of the weights at the resume."""
    settings = {"save_strategy": "epoch", "max_steps": 20}
    whole = tiny_trainer(tmp_path / "a", model=pruned(tiny_translator()), config=CONFIG, **settings)
    whole.train()
    resumed = tiny_trainer(tmp_path / "b", model=tiny_translator(), config=CONFIG, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-10"))
    for (name, a), b in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name

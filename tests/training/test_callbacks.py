"""What the callback does for the methods."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import drive
from hf_autosparse import GMPConfig, SETConfig
from hf_autosparse.training.callbacks import AutoSparseCallback
from hf_autosparse.training.driver import reset_optimizer_state
from update_rules import F, T


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
        lambda p: torch.optim.AdamW(p, 0.1, fused=True, amsgrad=True),
        lambda p: torch.optim.Adam(p, 0.1, foreach=True),
    ],
)
def test_optimizer_state_of_grown_weights_is_reset(make):
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = make([weight])
    weight.sum().backward()
    optimizer.step()
    shaped = [v for v in optimizer.state[weight].values() if torch.is_tensor(v) and v.shape == weight.shape]
    assert shaped and all(v.all() for v in shaped)
    reset_optimizer_state(optimizer, weight, torch.tensor([[T, F], [F, F]]))
    assert all((v != 0).tolist() == [[F, T], [T, T]] for v in shaped)


def test_a_method_without_alpha_needs_no_length_of_the_training_set():
    model = drive.sparse_net(SETConfig(target_sparsity=0.6))
    arguments = SimpleNamespace(gradient_accumulation_steps=1), SimpleNamespace(max_steps=12, global_step=0), None
    AutoSparseCallback().on_train_begin(*arguments, model=model, train_dataloader=iter(()))
    gradual = drive.sparse_net(GMPConfig(target_sparsity=0.6, alpha_init=0.5, alpha_schedule="linear"))
    with pytest.raises(ValueError, match="needs a training set with a length"):
        AutoSparseCallback().on_train_begin(*arguments, model=gradual, train_dataloader=iter(()))

"""What the callback does for the methods."""

from types import SimpleNamespace

import pytest

import drive
from hf_autosparse import GMPConfig, SETConfig
from hf_autosparse.training.callbacks import AutoSparseCallback


def test_a_method_without_alpha_needs_no_length_of_the_training_set():
    model = drive.sparse_net(SETConfig(target_sparsity=0.6))
    arguments = (
        SimpleNamespace(gradient_accumulation_steps=1, save_strategy="no"),
        SimpleNamespace(max_steps=12, global_step=0),
        None,
    )
    AutoSparseCallback().on_train_begin(*arguments, model=model, train_dataloader=iter(()))
    gradual = drive.sparse_net(GMPConfig(target_sparsity=0.6, alpha_init=0.5, alpha_schedule="linear"))
    with pytest.raises(ValueError, match="needs a training set with a length"):
        AutoSparseCallback().on_train_begin(*arguments, model=gradual, train_dataloader=iter(()))

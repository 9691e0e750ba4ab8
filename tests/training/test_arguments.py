"""What the trainers' constructor refuses, and the sentence that it says."""

import re

import pytest
import torch
from torch.utils.data import IterableDataset
from transformers import Seq2SeqTrainer, Trainer

from hf_autosparse import AutoSparseConfig, AutoSparseMixin, AutoSparseTrainer, RigLConfig, sparse_layers, sparsify
from tiny import SPARSE, tiny_arguments, tiny_pairs, tiny_translator


class Other(Trainer):
    """A trainer of somebody's own, with another order of arguments."""

    def __init__(self, model=None, reference=None, args=None, **kwargs):
        assert reference is None
        super().__init__(model=model, args=args, **kwargs)


class SparseOther(AutoSparseMixin, Other):
    pass


def says(sentence: str) -> str:
    return f"^{re.escape(sentence)}$"


def test_model_and_arguments_are_passed_on_by_keyword(tmp_path):
    trainer = SparseOther(tiny_translator(), tiny_arguments(tmp_path), train_dataset=tiny_pairs(4))
    assert trainer.args.output_dir == str(tmp_path) and sparse_layers(trainer.model)


@pytest.mark.parametrize("base", [Trainer, Other, Seq2SeqTrainer])
def test_the_mixin_after_a_trainer_class(base):
    sentence = (
        f"class Wrong: AutoSparseMixin must come before {base.__name__}: class Wrong(AutoSparseMixin, {base.__name__})"
    )
    with pytest.raises(TypeError, match=says(sentence)):
        type("Wrong", (base, AutoSparseMixin), {})


def test_a_trainer_of_ours_after_a_trainer_class():
    with pytest.raises(TypeError, match=r"class Wrong\(AutoSparseMixin, Other\)"):
        type("Wrong", (Other, AutoSparseTrainer), {})


def test_a_mixin_between_ours_and_the_trainer_may_stand_anywhere():
    class Mixin:
        pass

    type("Right", (Mixin, AutoSparseMixin, Trainer), {})
    type("Right", (AutoSparseMixin, Mixin, Trainer), {})
    type("Right", (Mixin, AutoSparseTrainer), {})


def test_a_trainer_that_is_not_of_transformers(tmp_path):
    class Foreign:
        """As SetFit's Trainer."""

    class Sparse(AutoSparseMixin, Foreign):
        pass

    with pytest.raises(
        TypeError,
        match=says(
            "class Sparse(AutoSparseMixin, Foreign): AutoSparseMixin must come before a subclass of"
            " transformers.Trainer"
        ),
    ):
        Sparse(tiny_translator(), tiny_arguments(tmp_path))


ORDER = "the order is {}(model, args, sparse_config), and everything else is passed by keyword"


@pytest.mark.parametrize("trainer", [AutoSparseTrainer, SparseOther])
def test_stock_trainers_order_of_arguments(tmp_path, trainer):
    model, args, order = tiny_translator(), tiny_arguments(tmp_path), ORDER.format(trainer.__name__)

    def collate(features):
        raise NotImplementedError

    sentence = f"sparse_config is of type function, not a configuration such as AutoSparseConfig(): {order}"
    with pytest.raises(TypeError, match=says(sentence)):
        trainer(model, args, collate)
    with pytest.raises(TypeError, match=says(f"5 arguments without a keyword: {order}")):
        trainer(model, args, collate, tiny_pairs(4), tiny_pairs(4))
    with pytest.raises(
        TypeError, match=says(f"args is of type M2M100ForConditionalGeneration, not TrainingArguments: {order}")
    ):
        trainer(model, tiny_translator(), args)
    assert not sparse_layers(model)


def test_a_configuration_that_is_none(tmp_path):
    model, args = tiny_translator(), tiny_arguments(tmp_path)
    sentence = "sparse_config is a dict: make a configuration of it with SparseConfig.from_dict(...)"
    with pytest.raises(TypeError, match=says(sentence)):
        AutoSparseTrainer(model, args, {"method": "autosparse"})
    with pytest.raises(TypeError, match=r"^sparse_config is AutoSparseConfig, not a configuration such as AutoSparseC"):
        AutoSparseTrainer(model, args, AutoSparseConfig)
    assert not sparse_layers(model)


# ---- Frozen layers ----


@pytest.mark.parametrize("config", [AutoSparseConfig(**SPARSE), RigLConfig(target_sparsity=0.5)])
def test_layers_that_are_frozen_once_they_are_sparse(tmp_path, config):
    model = sparsify(tiny_translator(), config)
    names = list(sparse_layers(model))
    model.get_submodule(names[2]).requires_grad_(False)
    sentence = rf"1 layers were frozen after they were made sparse \(first: {re.escape(names[2])}\).*those stay dense"
    with pytest.raises(ValueError, match=sentence):
        AutoSparseTrainer(model, tiny_arguments(tmp_path), train_dataset=tiny_pairs(4))
    model.get_submodule(names[2]).requires_grad_(True)
    trainer = AutoSparseTrainer(model, tiny_arguments(tmp_path), train_dataset=tiny_pairs(4))
    model.get_submodule(names[2]).requires_grad_(False)
    with pytest.raises(ValueError, match=sentence):
        trainer.train()
    assert trainer.state.global_step == 0


# ---- Streams ----


class Stream(IterableDataset):
    """Ten batches of four."""

    def __iter__(self):
        return iter(tiny_pairs(40))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"alpha_update": "epoch"},
            "alpha_update='epoch' needs a training set with a length (steps_per_epoch): without one, use"
            " alpha_update='step'",
        ),
        (
            {"alpha_update": "step", "alpha_epochs": 2.0},
            "alpha_epochs = 2.0 needs a training set with a length (steps_per_epoch): without one, the run is one"
            " epoch, so give a share of it, at most 1",
        ),
        (
            {"alpha_update": "step", "alpha_zero_epoch": 3},
            "alpha_zero_epoch = 3 needs a training set with a length (steps_per_epoch): without one, the run is one"
            " epoch, so give a share of it, at most 1",
        ),
    ],
)
def test_settings_that_count_epochs_of_a_stream(tmp_path, settings, sentence):
    args = tiny_arguments(tmp_path, max_steps=5)
    with pytest.raises(ValueError, match=says(sentence)):
        AutoSparseTrainer(tiny_translator(), args, AutoSparseConfig(**SPARSE, **settings), train_dataset=Stream())


def test_a_stream_that_is_shorter_than_the_run_is_annealed_by_step(tmp_path):
    config = AutoSparseConfig(**SPARSE, alpha_update="step", alpha_zero_epoch=0.75)
    args = tiny_arguments(tmp_path, max_steps=20, logging_steps=1)
    trainer = AutoSparseTrainer(tiny_translator(), args, config, train_dataset=Stream())
    trainer.train()
    alphas = [entry["alpha"] for entry in trainer.state.log_history if "loss" in entry]
    expected = [0.5 * (1 - step / 20) if step < 15 else 0.0 for step in range(20)]
    assert torch.tensor(alphas) == pytest.approx(torch.tensor(expected))

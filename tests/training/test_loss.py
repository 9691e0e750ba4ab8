"""Whose loss is weighted by tokens, and who divides by the accumulation steps."""

import pytest
import torch
from transformers import PretrainedConfig, Trainer

from hf_autosparse import AutoSparseConfig, AutoSparseMixin, AutoSparseTrainer
from tiny import VOCABULARY, tiny_arguments, tiny_pairs

DENSE = AutoSparseConfig(threshold_init=-40.0, threshold_lr=0.0, threshold_weight_decay=0.0, alpha_schedule=None)


class Tagger(torch.nn.Module):
    """Its forward takes no num_items_in_batch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.hidden = torch.nn.Embedding(VOCABULARY, 8), torch.nn.Linear(8, 8)
        self.head = torch.nn.Linear(8, VOCABULARY)
        self.config = PretrainedConfig()

    def forward(self, input_ids, labels=None):
        logits = self.head(self.hidden(self.embed(input_ids)).relu())
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return {"loss": loss, "logits": logits}


class TaggerWithKwargs(Tagger):
    """Trainer hands it num_items_in_batch, which it ignores."""

    def forward(self, input_ids, labels=None, **kwargs):
        return super().forward(input_ids, labels)


class OwnLoss:
    """As transformers' documentation shows: the mean of a batch, returned as it is."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        loss = outputs["loss"] * 1.5
        return (loss, outputs) if return_outputs else loss


class AddedTerm:
    """A term of its own, on top of the loss of the trainer behind it."""

    loss_is_scaled_for_ga = False

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        return loss + 0 * self.model.head.weight.sum()


def losses_and_norms(trainer_class, model, output_dir, size, steps, sparse=True, **changes):
    arguments = {
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": steps,
        "logging_steps": 1,
        "max_steps": 3,
        "learning_rate": 0.1,
        "optim": "sgd",
    }
    kwargs = {"sparse_config": DENSE} if sparse else {}
    trainer = trainer_class(
        model=model, args=tiny_arguments(output_dir, **(arguments | changes)), train_dataset=tiny_pairs(24), **kwargs
    )
    trainer.train()
    return [(e["loss"], e["grad_norm"]) for e in trainer.state.log_history if "loss" in e]


@pytest.mark.parametrize("model_class", [Tagger, TaggerWithKwargs])
@pytest.mark.parametrize("scaled", [None, False, True])
def test_a_subclass_with_a_loss_of_its_own_gets_what_stock_trainer_makes_of_it(tmp_path, model_class, scaled):
    fields = {"loss_is_scaled_for_ga": scaled}
    stock = type("Stock", (OwnLoss, Trainer), fields)
    expected = losses_and_norms(stock, model_class(), tmp_path, 1, 8, sparse=False)
    for bases in ((OwnLoss, AutoSparseTrainer), (AutoSparseMixin, OwnLoss, Trainer)):
        ours = losses_and_norms(type("Ours", bases, fields), model_class(), tmp_path, 1, 8)
        assert torch.tensor(ours) == pytest.approx(torch.tensor(expected), rel=1e-5)


@pytest.mark.parametrize("model_class", [Tagger, TaggerWithKwargs])
@pytest.mark.parametrize("scaled", [None, False, True])
def test_trainers_own_loss_is_the_mean_over_all_tokens_whatever_the_switch_says(tmp_path, model_class, scaled):
    trainer_class = type("Ours", (AutoSparseTrainer,), {"loss_is_scaled_for_ga": scaled})
    one = losses_and_norms(trainer_class, model_class(), tmp_path, 8, 1)
    for size, steps in ((1, 8), (2, 4), (4, 2)):
        accumulated = losses_and_norms(trainer_class, model_class(), tmp_path, size, steps)
        assert torch.tensor(accumulated) == pytest.approx(torch.tensor(one), rel=1e-4)


def test_a_subclass_that_calls_super_gets_the_weighted_loss(tmp_path):
    trainer_class = type("Ours", (AddedTerm, AutoSparseTrainer), {})
    one = losses_and_norms(AutoSparseTrainer, Tagger(), tmp_path, 8, 1)
    accumulated = losses_and_norms(trainer_class, Tagger(), tmp_path, 1, 8)
    assert torch.tensor(accumulated) == pytest.approx(torch.tensor(one), rel=1e-4)


def test_switches_of_trainer_stay_as_trainer_sets_them(tmp_path):
    for model, accepts in ((Tagger(), False), (TaggerWithKwargs(), True)):
        assert AutoSparseTrainer(model, tiny_arguments(tmp_path), DENSE).model_accepts_loss_kwargs is accepts


def test_batches_reach_a_trainer_of_somebodys_own_unchanged(tmp_path):
    class Batch(dict):
        pass

    class Other(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            assert isinstance(inputs, Batch)
            return model(inputs["input_ids"], inputs["labels"])["loss"]

    def collate(pairs):
        return Batch({key: torch.stack([pair[key] for pair in pairs]) for key in pairs[0]})

    class Sparse(AutoSparseMixin, Other):
        pass

    trainer = Sparse(
        Tagger(), tiny_arguments(tmp_path, max_steps=1), DENSE, train_dataset=tiny_pairs(8), data_collator=collate
    )
    assert trainer.train().global_step == 1

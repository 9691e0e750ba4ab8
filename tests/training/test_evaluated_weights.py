"""Evaluation and saving see the same weights, whatever the arguments or the optimizer put into the model before."""

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, Seq2SeqTrainer

from hf_autosparse import AutoSparseConfig, sparse_layers, sparsify
from tiny import tiny_arguments, tiny_pairs, tiny_trainer, tiny_translator

CONFIG = AutoSparseConfig(threshold_init={"sparsity": 0.4}, first_last="none")


class Averaging(torch.optim.SGD):
    """As schedule-free optimizers do: between `eval()` and `train()` the model holds the mean of all weights."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=0.2)
        self.parameters = [p for group in self.param_groups for p in group["params"]]
        self.mean, self.kept, self.count = [p.detach().clone() for p in self.parameters], None, 1

    @torch.no_grad()
    def step(self, closure=None):
        assert self.kept is None
        super().step(closure)
        self.count += 1
        for mean, p in zip(self.mean, self.parameters, strict=True):
            mean.lerp_(p, 1 / self.count)

    @torch.no_grad()
    def eval(self):
        if self.kept is None:
            self.kept = [p.detach().clone() for p in self.parameters]
            for mean, p in zip(self.mean, self.parameters, strict=True):
                p.copy_(mean)

    @torch.no_grad()
    def train(self):
        if self.kept is not None:
            for p, value in zip(self.parameters, self.kept, strict=True):
                p.copy_(value + 1e-6)  # the way back is not exact
            self.kept = None


def trained(tmp_path, **changes):

    model = sparsify(tiny_translator(), CONFIG)
    optimizer = Averaging(model.parameters())
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    arguments = {"max_steps": 6, "optimizers": (optimizer, schedule)} | changes
    trainer = tiny_trainer(tmp_path, model=model, config=CONFIG, **arguments)
    return trainer, optimizer


def loss_of(directory):
    model = AutoModelForSeq2SeqLM.from_pretrained(directory)
    stock = Seq2SeqTrainer(model, tiny_arguments(directory / "stock"), eval_dataset=tiny_pairs(8, seed=1))
    return stock.evaluate()["eval_loss"]


def test_a_schedule_free_optimizer_is_evaluated_on_its_average(tmp_path):
    trainer, _ = trained(tmp_path, eval_strategy="steps", eval_steps=3, save_strategy="steps", save_steps=3)
    trainer.train()
    for entry in (e for e in trainer.state.log_history if "eval_loss" in e):
        assert loss_of(tmp_path / f"checkpoint-{entry['step']}") == pytest.approx(entry["eval_loss"], rel=1e-5)


def test_its_average_is_saved_without_an_evaluation_too_and_training_does_not_notice(tmp_path):
    states = []
    for strategy in ("no", "steps"):
        trainer, _ = trained(tmp_path / strategy, save_strategy=strategy, save_steps=2)
        trainer.train()
        states.append({name: p.detach().clone() for name, p in trainer.model.named_parameters()})
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    trainer.save_model(tmp_path / "final")
    saved = loss_of(tmp_path / "final")
    assert trainer.evaluate()["eval_loss"] == pytest.approx(saved, rel=1e-5)
    trainer.save_model(tmp_path / "again")
    assert loss_of(tmp_path / "again") == pytest.approx(saved, rel=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_whole_evaluation_in_half_precision(tmp_path, precision):
    trainer = tiny_trainer(tmp_path, config=CONFIG, max_steps=2, **{f"{precision}_full_eval": True})
    trainer.train()
    whole = tiny_trainer(tmp_path, config=CONFIG, max_steps=2)
    whole.train()
    expected = whole.evaluate()["eval_loss"]
    for _ in range(2):
        assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=0.02)
    assert trainer.predict(tiny_pairs(4)).predictions is not None
    assert all(layer.folded is None for layer in sparse_layers(trainer.model).values())

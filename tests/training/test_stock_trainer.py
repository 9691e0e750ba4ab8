"""A stock Trainer with our callback: what it saves was evaluated, and it resumes from raw weights."""

import logging

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForSeq2SeqLM, Seq2SeqTrainer, Trainer

from hf_autosparse import AutoSparseCallback, AutoSparseConfig, sparse_layers, sparsify
from hf_autosparse.training.checkpoint import IncompleteCheckpointError
from tiny import SPARSE, StopAt, assert_same_state, tiny_arguments, tiny_pairs, tiny_trainer, tiny_translator


def stock(output_dir, *callbacks, **changes):
    model = sparsify(tiny_translator(), AutoSparseConfig(**SPARSE))
    arguments = {"save_strategy": "steps", "save_steps": 4, "max_steps": 12} | changes
    return Seq2SeqTrainer(
        model,
        tiny_arguments(output_dir, **arguments),
        train_dataset=tiny_pairs(40),
        eval_dataset=tiny_pairs(8, seed=1),
        callbacks=[AutoSparseCallback(), *callbacks],
    )


def assert_written(directory, model):
    assert not [key for key in load_file(directory / "model.safetensors") if "sparsifier" in key]
    loaded = AutoModelForSeq2SeqLM.from_pretrained(directory)
    for name, layer in sparse_layers(model).items():
        assert torch.equal(loaded.get_parameter(f"{name}.weight"), layer.sparse_weight())


def test_it_saves_what_it_evaluated_and_resumes_exactly(tmp_path):
    whole = stock(tmp_path / "whole")
    whole.train()
    assert_written(tmp_path / "whole" / "checkpoint-12", whole.model)
    whole.save_model(tmp_path / "final")
    assert_written(tmp_path / "final", whole.model)
    stock(tmp_path / "killed", StopAt(8)).train()
    resumed = stock(tmp_path / "killed")
    resumed.train(resume_from_checkpoint=True)
    assert_same_state(whole.model, resumed.model)


def test_a_checkpoint_without_native_state_is_refused(tmp_path):
    stock(tmp_path, StopAt(4)).train()
    (tmp_path / "checkpoint-4" / "autosparse_state.safetensors").unlink()
    with pytest.raises(IncompleteCheckpointError, match="has no autosparse_state.safetensors"):
        stock(tmp_path).train(resume_from_checkpoint=True)


def test_the_best_model_is_loaded_with_its_raw_weights(tmp_path):
    best = {"eval_strategy": "steps", "eval_steps": 4, "load_best_model_at_end": True}
    best |= {"metric_for_best_model": "rank", "greater_is_better": False}
    trainer = stock(tmp_path, **best)
    ranks = iter([2, 1, 3])
    trainer.compute_metrics = lambda predictions: {"rank": next(ranks)}
    trainer.train()
    checkpoint = tmp_path / f"checkpoint-{trainer.state.best_global_step}"
    assert trainer.state.best_global_step == 8
    assert_written(checkpoint, trainer.model)
    trainer.compute_metrics = None
    logged = [e["eval_loss"] for e in trainer.state.log_history if e["step"] == 8 and "eval_loss" in e]
    assert [trainer.evaluate()["eval_loss"]] == pytest.approx(logged, rel=1e-5)


def test_a_model_without_save_pretrained_would_be_saved_raw(tmp_path):
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.layer = nn.Embedding(60, 8), nn.Linear(8, 60)

        def forward(self, input_ids, labels):
            logits = self.layer(self.embed(input_ids))
            return {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())}

    def trainer(strategy):
        model = sparsify(Plain(), AutoSparseConfig(first_last="none"))
        arguments = tiny_arguments(tmp_path, save_strategy=strategy, max_steps=1)
        return Trainer(model, arguments, train_dataset=tiny_pairs(8), callbacks=[AutoSparseCallback()])

    with pytest.raises(ValueError, match="Plain has no save_pretrained.*use AutoSparseTrainer, or save_strategy='no'"):
        trainer("steps").train()
    assert trainer("no").train().global_step == 1


class Stream(torch.utils.data.IterableDataset):
    """16 examples a pass: 4 steps."""

    def __iter__(self):
        return iter(tiny_pairs(16))


@pytest.mark.parametrize(("step", "warns"), [(3, False), (6, True)])
def test_a_resume_after_the_first_pass_of_a_stream_warns(tmp_path, caplog, step, warns):
    def run(*callbacks):
        trainer = tiny_trainer(
            tmp_path,
            config=AutoSparseConfig(alpha_schedule="fixed"),
            callbacks=callbacks,
            max_steps=8,
            save_strategy="steps",
            save_steps=step,
        )
        trainer.train_dataset = Stream()
        return trainer

    run(StopAt(step)).train()
    with caplog.at_level(logging.WARNING):
        run().train(resume_from_checkpoint=True)
    message = (
        f"resumed at step {step} in pass 2 of a stream of unknown length: Trainer skips the batches of one pass only"
    )
    assert (message in caplog.text) is warns

"""Each promise of the trainer, on each architecture."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from architectures import ARCHITECTURES, Architecture
from hf_autosparse import AutoSparseConfig, AutoSparseTrainer, finalize, sparse_layers, sparsify, sparsity_report
from paths import PYTHONPATH
from tiny import SPARSE, StopAt, assert_same_state, history, tiny_arguments

each = pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
without_batch_norm = [a for a in ARCHITECTURES if not a.batch_norm]


def train(architecture: Architecture, output_dir, *, stop=None, resume=None, **changes) -> AutoSparseTrainer:
    settings = {
        "logging_steps": 2,
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 3,
        "optim": "sgd",
        "learning_rate": 0.05,
        "ddp_find_unused_parameters": False,
    }
    trainer = AutoSparseTrainer(
        architecture.model(),
        tiny_arguments(output_dir, **(settings | changes)),
        AutoSparseConfig(**SPARSE),
        train_dataset=architecture.examples(40),
        callbacks=[StopAt(stop)] if stop else [],
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@each
def test_resumed_equals_uninterrupted_and_what_is_written_is_the_evaluated_model(architecture, tmp_path):
    whole = train(architecture, tmp_path / "whole", optim="adamw_torch")
    train(architecture, tmp_path / "killed", optim="adamw_torch", stop=3)
    resumed = train(architecture, tmp_path / "killed", optim="adamw_torch", resume=True)
    assert_same_state(whole.model, resumed.model)
    assert history(whole)[:-1] == history(resumed)[:-1]

    stock = architecture.auto.from_pretrained(tmp_path / "whole" / "checkpoint-6").eval()
    examples = architecture.examples(3)
    batch = {key: torch.stack([e[key] for e in examples]) for key in examples[0]}
    if "labels" in batch and architecture.kind == "seq2seq":
        batch["labels"] = batch["labels"].clamp(min=1)
    with torch.no_grad():
        expected = whole.model.eval()(**batch).logits
        torch.testing.assert_close(stock(**batch).logits, expected, atol=1e-6, rtol=1e-5)
        finalize(whole.model)
        assert torch.equal(whole.model(**batch).logits, expected)


@pytest.mark.parametrize("architecture", without_batch_norm, ids=lambda a: a.name)
def test_accumulated_8x1_equals_1x8(architecture, tmp_path):
    runs = [
        train(
            architecture, tmp_path, per_device_train_batch_size=b, gradient_accumulation_steps=8 // b, logging_steps=1
        )
        for b in (8, 1)
    ]
    losses = [[e["loss"] for e in run.state.log_history if "loss" in e] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert_close_states(*(run.model.state_dict() for run in runs))


def assert_close_states(a, b):
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=2e-5, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")


def test_two_processes_equal_one(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH}
    program = [__file__, str(tmp_path / "two"), "4"]
    result = subprocess.run(command + program, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]
    train_all(tmp_path / "one", batch=8)
    one, two = (json.loads((tmp_path / run / "losses.json").read_text()) for run in ("one", "two"))
    for architecture in without_batch_norm:
        name = architecture.name
        assert one[name] == pytest.approx(two[name], rel=1e-4), name
        assert_close_states(*(torch.load(tmp_path / run / f"{name}.pt") for run in ("one", "two")))


def train_all(output: Path, batch: int) -> None:
    losses = {}
    for architecture in without_batch_norm:
        trainer = train(
            architecture,
            output / architecture.name,
            per_device_train_batch_size=batch,
            logging_steps=1,
            save_strategy="no",
        )
        losses[architecture.name] = [e["loss"] for e in trainer.state.log_history if "loss" in e]
        if trainer.is_world_process_zero():
            torch.save(trainer.model.state_dict(), output / f"{architecture.name}.pt")
    if trainer.is_world_process_zero():
        (output / "losses.json").write_text(json.dumps(losses))


@pytest.mark.parametrize(
    ("name", "dense", "sparse_count"),
    [
        ("marian", {"lm_head": "tied", "model.shared": "embedding"}, 6 + 10),
        ("t5-gated", {"lm_head": "tied"}, 7 + 11),
        ("gpt2-conv1d", {"lm_head": "tied"}, 8),
        ("llama-untied", {"lm_head": "last"}, 14),
        ("mixtral-moe", {"lm_head": "last", "model.layers.0.mlp.experts": "experts"}, 8),
        ("bert-masked", {"cls.predictions.decoder": "tied"}, 13),
        ("roberta-class", {"classifier.out_proj": "last"}, 13),
        ("vit", {"classifier": "last", "vit.embeddings.patch_embeddings.projection": "first"}, 12),
        ("resnet", {"classifier.1": "last", "resnet.embedder.embedder.convolution": "first"}, None),
    ],
)
def test_which_layers_are_left_dense(name, dense, sparse_count):
    model = next(a for a in ARCHITECTURES if a.name == name).model()
    report = sparsity_report(sparsify(model, AutoSparseConfig()))
    for module, reason in dense.items():
        assert reason in report.dense[module], report.dense
    if sparse_count is not None:
        assert len(sparse_layers(model)) == sparse_count, [row.name for row in report.layers]


if __name__ == "__main__":  # what the test above runs in each of two processes
    train_all(Path(sys.argv[1]), batch=int(sys.argv[2]))

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from examples.wmt14 import train as example
from examples.wmt14.recipe import load_recipe
from hf_autosparse import pack
from tiny import StopAt, assert_same_state

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "examples" / "wmt14" / "configs"
TINY = [
    "data.demo_train=300",
    "data.demo_validation=20",
    "data.demo_test=20",
    "tokenizer.vocab_size=500",
    "model.d_model=16",
    "model.encoder_ffn_dim=16",
    "model.decoder_ffn_dim=16",
    "max_tokens=256",
    "training.max_steps=8",
    "training.use_cpu=true",
    "training.disable_tqdm=true",
    "evaluation.num_beams=1",
]


def recipe(output: Path, name: str = "demo", *changes: str):
    return load_recipe(CONFIGS / f"{name}.yaml", [*TINY, *changes, f"output_dir={output}"])


@pytest.mark.parametrize("name", ["demo", "demo_dense"])
def test_train_saves_model_tokenizer_translations_and_figures(tmp_path, name):
    result = example.train(recipe(tmp_path / "run", name))
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result
    assert result["steps"] == 8 and result["bleu"] >= 0 and result["train_tokens_per_second"] > 0
    assert ("sparsity" in result) == (name == "demo")
    assert len((tmp_path / "run" / "hypotheses.txt").read_text().split("\n")) == 20 + 1
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "run")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    assert model.config.vocab_size == len(tokenizer)
    if name == "demo":
        zeros = (model.model.encoder.layers[0].fc1.weight == 0).float().mean()
        assert zeros == pytest.approx(result["sparsity"], abs=0.2) and zeros > 0
    with pytest.raises(FileExistsError, match="holds an earlier run: give --resume"):
        example.train(recipe(tmp_path / "run", name))


def test_resumed_run_equals_an_uninterrupted_one(tmp_path, monkeypatch):
    saving = ["training.save_strategy=steps", "training.save_steps=3"]
    trainers = []

    class Recording(example.SparseTrainer):
        stop_at = 8

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.add_callback(StopAt(Recording.stop_at))
            trainers.append(self)

        def train(self, **kwargs):
            output = super().train(**kwargs)
            self.final = {k: v.clone() for k, v in self.model.state_dict().items()}
            return output

    monkeypatch.setattr(example, "SparseTrainer", Recording)
    example.train(recipe(tmp_path / "whole", "demo", *saving))
    Recording.stop_at = 3
    example.train(recipe(tmp_path / "killed", "demo", *saving))
    Recording.stop_at = 8
    example.train(recipe(tmp_path / "killed", "demo", *saving), resume=True)
    whole, _, resumed = (trainer.final for trainer in trainers)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    texts = [(tmp_path / run / "hypotheses.txt").read_text() for run in ("whole", "killed")]
    assert texts[0] == texts[1]
    assert_same_state(*(AutoModelForSeq2SeqLM.from_pretrained(tmp_path / run) for run in ("whole", "killed")))


def test_sparse_model_is_trained_on_with_its_zeros_kept(tmp_path):
    example.train(recipe(tmp_path / "first"))
    pack(tmp_path / "first", tmp_path / "packed")
    changes = [f"start_from={tmp_path}/packed", "model.d_model=999", "tokenizer.vocab_size=999"]
    example.train(recipe(tmp_path / "second", "demo_dense", *changes, 'sparse={"method": "fixed_mask"}'))
    first, second = (AutoModelForSeq2SeqLM.from_pretrained(tmp_path / run).state_dict() for run in ("first", "second"))
    changed = 0
    for name, weight in first.items():
        if (weight == 0).any() and ".fc" in name and name.endswith("weight"):
            assert torch.equal(weight == 0, second[name] == 0), name
            changed += not torch.equal(weight, second[name])
    assert changed > 0
    tokenizers = [AutoTokenizer.from_pretrained(tmp_path / run).get_vocab() for run in ("first", "second")]
    assert tokenizers[0] == tokenizers[1]


def test_two_process_smoke_run_is_really_launched(tmp_path):
    script = ROOT / "examples" / "wmt14" / "launch" / "smoke_cpu.sh"
    changes = [part for change in [*TINY, f"output_dir={tmp_path}/run"] for part in ("--set", change)]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": path, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([script, *changes], env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]
    printed = json.loads(result.stdout[result.stdout.index('{\n  "recipe"') :])
    assert printed["steps"] == 8 and 0 < printed["sparsity"] < 1
    # Half the steps an epoch that one process makes: both took part.
    assert printed["epochs"] == pytest.approx(2 * example.train(recipe(tmp_path / "one"))["epochs"], rel=0.1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: base.yaml\nsparce: 1\n", "unknown section 'sparce'.*near: \\['sparse'\\]"),
        ("seed: 1\n", "missing section\\(s\\) \\['data'"),
        ("- 1\n", "holds a list"),
    ],
)
def test_bad_recipe(tmp_path, text, message):
    (tmp_path / "base.yaml").write_text((CONFIGS / "demo.yaml").read_text())
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_recipe(tmp_path / "mine.yaml")


def test_overrides():
    changes = ["training.eval_strategy=no", "training.learning_rate=1e-3", "sparse=null", "data.max_train_pairs=5"]
    values = load_recipe(CONFIGS / "demo.yaml", changes)
    assert values["training"]["eval_strategy"] == "no"
    assert values["training"]["learning_rate"] == 0.001
    assert values["sparse"] is None and values["data"]["max_train_pairs"] == 5
    with pytest.raises(ValueError, match="expected section.key=value"):
        load_recipe(CONFIGS / "demo.yaml", ["seed"])

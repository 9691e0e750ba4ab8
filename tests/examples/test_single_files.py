"""The examples of one file each: they run without a download, and stock transformers loads what they save."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from paths import PYTHONPATH, ROOT

EXAMPLES = {
    "causal_lm": transformers.AutoModelForCausalLM,
    "text_classification": transformers.AutoModelForSequenceClassification,
    "translation": transformers.AutoModelForSeq2SeqLM,
}
ROWS = {
    "causal_lm": ("own.txt", "a dog waits\na cat waits\n"),
    "text_classification": ("own.csv", "text,label\n" + "a good day,1\na bad day,0\n" * 5),
    "translation": ("own.csv", "en,de\na dog,ein Hund\na cat,eine Katze\n"),
}


def run(name: str, folder: Path, *options: str) -> str:
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), "--output", str(folder), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH, "HF_HOME": str(folder.parent / "hf")}
    done = subprocess.run(command, cwd=folder.parent, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_runs_reports_and_saves_what_stock_transformers_loads(name, tmp_path):
    printed = run(name, tmp_path / "model", "--sparsity", "0.6", "--epochs", "6")
    assert "left dense" in printed
    model, info = EXAMPLES[name].from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(info.values()), info
    ends = ("fc1.weight", "up_proj.weight", "intermediate.dense.weight")
    weights = [weight for key, weight in model.named_parameters() if key.endswith(ends)]
    zeros = torch.cat([weight.flatten() for weight in weights]) == 0
    assert zeros.float().mean() == pytest.approx(0.6, abs=0.1)
    data, text = ROWS[name]
    (tmp_path / data).write_text(text)
    run(name, tmp_path / "again", "--model", str(tmp_path / "model"), "--data", str(tmp_path / data), "--epochs", "1")
    assert (tmp_path / "again" / "model.safetensors").is_file()


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_is_short(name):
    assert len((ROOT / "examples" / f"{name}.py").read_text().splitlines()) < 80

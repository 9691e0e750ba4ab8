"""Loading packed models through transformers' internals: whatever of them moves, nothing but that loading fails."""

import ast
import importlib
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModelForSeq2SeqLM, BertConfig, BertModel
from transformers.quantizers import auto

import hf_autosparse
from hf_autosparse import AutoSparseConfig, finalize, pack, sparsify
from hf_autosparse.serialization import autoload, quantizer
from tiny import tiny_translator

QUANTIZER = "hf_autosparse.serialization.quantizer"


def names_of_transformers():
    """(module, name) of everything that quantizer.py imports from transformers when it is imported."""
    for node in ast.parse(Path(quantizer.__file__).read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module.startswith("transformers"):
            yield from ((node.module, alias.name) for alias in node.names)


@pytest.fixture(scope="module")
def model():
    return finalize(sparsify(tiny_translator(), AutoSparseConfig(threshold_init={"sparsity": 0.7})))


@pytest.fixture(scope="module")
def packed(model, tmp_path_factory):
    directory = tmp_path_factory.mktemp("packed") / "model"
    pack(model, directory)
    return directory


@pytest.fixture
def fresh(monkeypatch):
    """Loading imports quantizer.py anew."""
    AutoModelForSeq2SeqLM  # noqa: B018  imports what registers the first one
    monkeypatch.delitem(sys.modules, QUANTIZER)
    monkeypatch.delitem(auto.AUTO_QUANTIZER_MAPPING, "autosparse")
    return monkeypatch


def assert_refused(packed):
    with pytest.raises(ImportError) as refused:
        AutoModelForSeq2SeqLM.from_pretrained(packed)
    assert f"hf_autosparse {hf_autosparse.__version__} cannot load packed models" in str(refused.value)
    assert f"with transformers {transformers.__version__} (" in str(refused.value)
    return str(refused.value)


# ---- transformers has moved something ----


@pytest.mark.parametrize(("module", "name"), list(names_of_transformers()))
def test_a_name_that_has_moved(module, name, fresh, packed):
    fresh.delattr(importlib.import_module(module), name)
    assert name in assert_refused(packed)
    BertModel(BertConfig(hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4, vocab_size=4))


@pytest.mark.parametrize("module", sorted({module for module, _ in names_of_transformers()}))
def test_a_module_that_has_moved(module, fresh, packed):
    fresh.setitem(sys.modules, module, None)
    assert module in assert_refused(packed)


@pytest.mark.parametrize(("cls", "name"), [(cls, name) for cls, names in quantizer.NEEDED.items() for name in names])
def test_a_method_that_has_moved(cls, name, fresh, packed):
    for base in cls.__mro__:
        if name in vars(base):
            fresh.delattr(base, name)
    assert name in assert_refused(packed)


def test_a_registry_without_its_dictionary(tmp_path):
    """The stand-in for transformers has the module that is watched for, but with other content."""
    (tmp_path / "transformers" / "quantizers").mkdir(parents=True)
    (tmp_path / "transformers" / "__init__.py").write_text(
        "__version__ = '99.0'\nfrom .quantizers import auto\nclass BertModel: pass\n"
    )
    (tmp_path / "transformers" / "quantizers" / "__init__.py").touch()
    (tmp_path / "transformers" / "quantizers" / "auto.py").write_text("MAPPING = {}\n")
    program = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import hf_autosparse
from transformers import BertModel
from transformers.quantizers import auto
assert auto.MAPPING == {{}}
assert type(auto.__spec__.loader).__name__ == type(auto.__loader__).__name__ == "SourceFileLoader"
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert f"hf_autosparse {hf_autosparse.__version__} cannot register the packed format" in found.stderr
    assert "with transformers 99.0 (AttributeError: " in found.stderr


def test_a_finder_that_fails_is_left_to_python(monkeypatch, caplog):
    class Broken:
        def find_spec(self, *arguments):
            raise ValueError("broken")

    finder = autoload._Finder()
    monkeypatch.setattr(sys, "meta_path", [finder, Broken()])
    with caplog.at_level(logging.WARNING):
        assert finder.find_spec("transformers.quantizers.auto", None) is None
    assert "cannot register the packed format" in caplog.text and "broken" in caplog.text
    assert finder.find_spec("json", None) is None


def test_a_module_that_is_not_found(monkeypatch):
    finder = autoload._Finder()
    monkeypatch.setattr(sys, "meta_path", [finder])
    assert finder.find_spec("transformers.quantizers.auto", None) is None


# ---- A configuration of one's own, and no hf_autosparse ----


def test_with_a_configuration_that_does_not_say_that_the_model_is_packed(packed, model):
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForSeq2SeqLM.from_pretrained(packed, config=model.config)


def test_with_its_own_configuration(packed, model):
    config = transformers.AutoConfig.from_pretrained(packed)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(packed, config=config).state_dict()
    assert not [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, loaded[name])]


def test_without_this_package(packed, model, tmp_path):
    model.save_pretrained(tmp_path / "plain", max_shard_size="8KB")
    pack(tmp_path / "plain", tmp_path / "sharded")
    program = f"""
import sys
sys.modules["hf_autosparse"] = None
from transformers import AutoModel, AutoModelForSeq2SeqLM
for directory in {str(packed)!r}, {str(tmp_path / "sharded")!r}:
    for cls in AutoModel, AutoModelForSeq2SeqLM:
        try:
            cls.from_pretrained(directory)
        except RuntimeError as error:
            assert "ignore_mismatched_sizes" in str(error), error
        else:
            raise AssertionError(f"{{directory}} was loaded")
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "autosparse" in found.stderr

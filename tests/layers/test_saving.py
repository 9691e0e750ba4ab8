"""What a model that is still sparse writes, whoever saves it."""

import copy
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForSeq2SeqLM

from hf_autosparse import AutoSparseConfig, finalize, sparse_layers, sparsify
from hf_autosparse.layers.saving import DeployingSave, deployable_state_dict, deployed
from tiny import tiny_translator

CONFIG = AutoSparseConfig(threshold_init={"sparsity": 0.5})


def effective(model):
    return {f"{name}.weight": layer.sparse_weight().detach() for name, layer in sparse_layers(model).items()}


def assert_deployed(path, expected):
    written = load_file(path)
    assert not [key for key in written if "sparsifier" in key]
    assert expected
    for name, weight in expected.items():
        assert torch.equal(written[name], weight) and (weight == 0).any(), name


def assert_reloads(directory, model):
    loaded, report = AutoModelForSeq2SeqLM.from_pretrained(directory, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    for name, weight in effective(model).items():
        assert torch.equal(loaded.get_parameter(name), weight)


def test_save_pretrained_of_a_sparse_model_writes_what_is_evaluated(tmp_path):
    model = sparsify(tiny_translator(), CONFIG)
    raw = copy.deepcopy(model.state_dict())
    for name, kwargs in [("plain", {}), ("given", {"state_dict": model.state_dict()}), ("shards", {})]:
        model.save_pretrained(tmp_path / name, **kwargs, **({"max_shard_size": "4KB"} if name == "shards" else {}))
        assert_reloads(tmp_path / name, model)
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    with deployed(model):
        model.save_pretrained(tmp_path / "nested", state_dict=model.state_dict())
    assert_reloads(tmp_path / "nested", model)
    after = model.state_dict()
    assert raw.keys() == after.keys() and all(torch.equal(raw[key], after[key]) for key in raw)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_of_a_sparse_model_save_their_own_weights(tmp_path, duplicate):
    model = sparsify(tiny_translator(), CONFIG)
    other = duplicate(model)
    with torch.no_grad():
        next(iter(sparse_layers(other).values())).weight.mul_(2)
    other.save_pretrained(tmp_path)
    assert_reloads(tmp_path, other)


def test_a_part_of_a_sparse_model_and_the_whole_of_a_sparse_part(tmp_path):
    model = sparsify(tiny_translator(), CONFIG)
    model.model.save_pretrained(tmp_path / "part")
    assert_deployed(tmp_path / "part" / "model.safetensors", effective(model.model))


def test_finalize_gives_the_model_its_own_methods_back(tmp_path):
    model = tiny_translator()
    calls = []
    model.save_pretrained = lambda directory: calls.append(directory)  # somebody else's
    sparsify(model, CONFIG)
    assert isinstance(model.save_pretrained, DeployingSave)
    model.save_pretrained(tmp_path)
    finalize(model)
    model.save_pretrained(tmp_path)
    assert calls == [tmp_path, tmp_path]
    assert not [m for m in model.modules() for value in vars(m).values() if isinstance(value, DeployingSave)]


class Aliased(nn.Module):
    """One layer under two names, beside one that is tied to an embedding."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(6, 8)
        self.first = nn.Linear(8, 8)
        self.again = self.first
        self.head = nn.Linear(8, 6, bias=False)
        self.head.weight = self.embed.weight


def test_both_names_of_a_layer_hold_its_effective_weight(tmp_path):
    model = sparsify(Aliased(), AutoSparseConfig(threshold_init={"sparsity": 0.5}, first_last="none"))
    assert list(sparse_layers(model)) == ["first"]
    expected = model.first.sparse_weight()
    assert (expected == 0).any()
    with deployed(model):
        inside = model.state_dict()
    for state in (inside, deployable_state_dict(model), deployable_state_dict(model, model.state_dict())):
        assert set(state) == {
            "embed.weight",
            "head.weight",
            *(f"{n}.{p}" for n in ("first", "again") for p in ("weight", "bias")),
        }
        assert torch.equal(state["first.weight"], expected) and torch.equal(state["again.weight"], expected)
        assert torch.equal(state["head.weight"], model.embed.weight)
    save_file({key: value.clone() for key, value in inside.items()}, tmp_path / "model.safetensors")
    assert_deployed(tmp_path / "model.safetensors", {"first.weight": expected, "again.weight": expected})
    assert "first.sparsifier.threshold" in model.state_dict() and "again.sparsifier.threshold" in model.state_dict()


def test_blocks_nest_and_end_with_an_error():
    model = sparsify(Aliased(), AutoSparseConfig(first_last="none"))
    with pytest.raises(KeyError), deployed(model):
        with deployed(model):
            assert "first.sparsifier.threshold" not in model.state_dict()
        assert "first.sparsifier.threshold" not in model.state_dict()
        raise KeyError
    assert "first.sparsifier.threshold" in model.state_dict()

import copy
import pickle

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from hf_autosparse import (
    AutoSparseConfig,
    finalize,
    folded,
    layer_sparsity,
    sparse_layers,
    sparsify,
    sparsity,
    sparsity_report,
)
from hf_autosparse.layers.saving import deployable_state_dict
from hf_autosparse.layers.sparse import SparseConv2d, SparseLinear
from hf_autosparse.layers.sparsify import plain_parameters, sparsifier_parameters

EVERYTHING = AutoSparseConfig(first_last="none")


def mlp(*widths):
    return nn.Sequential(*[nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False)])


class Blocks(nn.Module):
    def __init__(self, count=3):
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.layers = nn.ModuleList(
            nn.ModuleDict({"fc1": nn.Linear(4, 8), "fc2": nn.Linear(8, 4)}) for _ in range(count)
        )
        self.head = nn.Linear(4, 10)


def test_sparse_linear_by_hand():
    model = mlp(2, 2)
    model[0].weight.data = torch.tensor([[1.0, -0.6], [0.2, 0.5]])
    model[0].bias.data.zero_()
    sparsify(model, AutoSparseConfig(first_last="none", threshold_init=0.0))  # T = sigmoid(0) = 0.5
    assert type(model[0]) is SparseLinear
    torch.testing.assert_close(model(torch.tensor([1.0, 1.0])), torch.tensor([0.5 - 0.1, 0.0]))
    assert model[0].sparsifier.mask(model[0].weight).tolist() == [[True, True], [False, False]]
    assert sparsity(model) == 0.5


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(5, 7), (3, 5)),
        (nn.Linear(5, 7, bias=False), (3, 5)),
        (nn.Conv2d(4, 6, 3, groups=2, padding=1, padding_mode="reflect"), (2, 4, 5, 5)),
        (nn.Conv2d(4, 4, 3, groups=4, stride=2, bias=False), (2, 4, 7, 7)),
        (Conv1D(7, 5), (3, 5)),
    ],
    ids=["linear", "linear-no-bias", "conv-grouped", "conv-depthwise", "conv1d"],
)
@pytest.mark.parametrize("granularity", ["layer", "channel"])
def test_layer_computes_the_dense_layer_with_thresholded_weight(layer, shape, granularity):
    dense = copy.deepcopy(layer)
    model = sparsify(
        nn.Sequential(copy.deepcopy(layer)), AutoSparseConfig(first_last="none", threshold_granularity=granularity)
    )
    sparse = model[0]
    dense.weight.data = sparse.sparsifier(sparse.weight).detach()
    x = torch.randn(shape)
    torch.testing.assert_close(sparse(x), dense(x))
    if granularity == "channel":
        assert sparse.sparsifier.threshold.shape == (sparse.weight.shape[sparse.kind.output_dim],)
        rows = (sparse.sparse_weight() == 0).movedim(sparse.kind.output_dim, 0).flatten(1).float().mean(1)
        assert (rows - 0.5).abs().max() <= 1 / sparse.weight[0].numel()  # each channel was given its own half
    sparse(x).sum().backward()
    assert sparse.weight.grad.shape == sparse.weight.shape
    assert sparse.sparsifier.threshold.grad.shape == sparse.sparsifier.threshold.shape


@pytest.mark.parametrize("wanted", [0.0, 0.3, 0.9])
def test_threshold_init_by_sparsity_is_exact_per_layer(wanted):
    model = sparsify(mlp(20, 50, 10), AutoSparseConfig(first_last="none", threshold_init={"sparsity": wanted}))
    assert layer_sparsity(model) == pytest.approx({"0": wanted, "1": wanted}, abs=1e-9)


def test_threshold_init_that_no_threshold_can_reach_names_the_layer():
    model = mlp(4, 4)
    model[0].weight.data.fill_(3.0)
    with pytest.raises(ValueError, match="layer 0: no threshold in .0, 1. prunes 50.0%"):
        sparsify(model, EVERYTHING)
    assert type(model[0]) is nn.Linear  # nothing was changed


def test_first_and_last_module_of_a_plain_network_stay_dense():
    model = sparsify(mlp(3, 4, 5, 6), AutoSparseConfig())
    assert list(sparse_layers(model)) == ["1"]
    assert sparsity_report(model).dense == {
        "0": "first layer (first_last='modules')",
        "2": "last layer (first_last='modules')",
    }


def test_a_subclass_may_be_the_first_or_last_layer():
    """It stays dense itself, and its neighbours are not spared in its stead."""

    class Standardized(nn.Conv2d):
        pass

    class Scaled(nn.Linear):
        pass

    body = [nn.Conv2d(3, 3, 1), nn.Flatten(), nn.Linear(3, 3)]
    model = sparsify(nn.Sequential(Standardized(3, 3, 1), *body, Scaled(3, 2)), AutoSparseConfig())
    assert list(sparse_layers(model)) == ["1", "3"]
    assert sparsity_report(model).dense == {
        "0": "Standardized is a subclass of nn.Conv2d with its own forward or weight",
        "4": "Scaled is a subclass of nn.Linear with its own forward or weight",
    }
    body = [nn.Conv2d(3, 3, 1), nn.Flatten(), nn.Linear(3, 3)]
    model = sparsify(nn.Sequential(*body, Scaled(3, 3), nn.Linear(3, 2)), AutoSparseConfig())
    assert list(sparse_layers(model)) == ["2"]  # a subclass inside changes nothing


def test_an_embedding_is_the_first_layer():
    model = sparsify(Blocks(), AutoSparseConfig())
    assert len(sparse_layers(model)) == 6
    assert sparsity_report(model).dense == {"embed": "embedding", "head": "last layer (first_last='modules')"}


def test_first_and_last_blocks():
    model = sparsify(Blocks(), AutoSparseConfig(first_last="blocks"))
    assert list(sparse_layers(model)) == ["layers.1.fc1", "layers.1.fc2"]
    with pytest.raises(ValueError, match="finds no repeated blocks"):
        sparsify(mlp(3, 3, 3), AutoSparseConfig(first_last="blocks"))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"target_modules": ["fc1"]}, ["layers.0.fc1", "layers.1.fc1", "layers.2.fc1"]),
        ({"target_modules": ["layers.1"]}, ["layers.1.fc1", "layers.1.fc2"]),
        ({"target_modules": ["layers.*.fc2"], "dense_modules": ["layers.0"]}, ["layers.1.fc2", "layers.2.fc2"]),
        ({"dense_modules": ["fc1", "layers.2.fc2"]}, ["layers.0.fc2", "layers.1.fc2"]),
    ],
)
def test_patterns(fields, expected):
    assert list(sparse_layers(sparsify(Blocks(), AutoSparseConfig(**fields)))) == expected


@pytest.mark.parametrize("field", ["target_modules", "dense_modules"])
def test_pattern_that_matches_nothing_lists_near_names(field):
    with pytest.raises(ValueError, match=rf"{field} pattern 'fc3' matches no layer. Near names: \['fc"):
        sparsify(Blocks(), AutoSparseConfig(**{field: ["fc3"]}))


def test_what_cannot_be_sparse_is_left_dense_and_reported():
    class Subclass(nn.Linear):
        pass

    model = nn.ModuleDict(
        {
            "attention": nn.MultiheadAttention(4, 2),
            "encoder": nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
            "subclass": Subclass(4, 4),
            "frozen": nn.Linear(4, 4).requires_grad_(False),
            "normed": nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
            "conv1d": nn.Conv1d(4, 4, 3),
            "embedding": nn.Embedding(9, 4),
            "tied": nn.Linear(4, 9, bias=False),
            "plain": nn.Linear(4, 4),
        }
    )
    model["tied"].weight = model["embedding"].weight
    sparsify(model, EVERYTHING)
    assert list(sparse_layers(model)) == ["plain"]
    dense = sparsity_report(model).dense
    assert "without calling a layer" in dense["attention"]
    assert "fast path" in dense["encoder.linear1"]
    assert "Subclass is a subclass of nn.Linear" in dense["subclass"]
    assert "frozen" in dense["frozen"]
    assert "ParametrizedLinear" in dense["normed"]
    assert "Conv1d is no nn.Linear" in dense["conv1d"]
    assert dense["tied"] == "its weight is tied to embedding.weight"
    encoder, x = model["encoder"].eval(), torch.randn(1, 3, 4)
    encoder(x)  # the fast path still runs


def test_a_module_used_twice_is_one_sparse_layer():
    model = nn.Sequential(nn.Linear(4, 4))
    model.append(model[0])
    sparsify(model, EVERYTHING)
    assert list(sparse_layers(model)) == ["0"]
    assert model[1] is model[0]


def test_no_layer_left_says_why():
    with pytest.raises(ValueError, match="no layer of Sequential is left to sparsify:\n  0: last layer"):
        sparsify(mlp(3, 3), AutoSparseConfig())


def test_sparsify_twice_is_an_error():
    model = sparsify(mlp(3, 3), EVERYTHING)
    with pytest.raises(ValueError, match="already sparse: call finalize"):
        sparsify(model, EVERYTHING)


def test_finalize_gives_the_plain_model_with_exact_zeros():
    torch.manual_seed(0)
    model = mlp(6, 8, 4)
    keys = list(model.state_dict())
    sparsify(model, EVERYTHING)
    x = torch.randn(5, 6)
    before, expected = model(x), sparsity(model)
    predicted = deployable_state_dict(model)
    assert finalize(model) is model
    assert torch.equal(model(x), before)
    assert [type(m) for m in model] == [nn.Linear, nn.Linear]
    assert list(model.state_dict()) == list(predicted) == keys
    assert all(torch.equal(predicted[k], v) for k, v in model.state_dict().items())
    assert sparsity(model) == expected == 0.5
    with pytest.raises(ValueError, match="no sparse layer to finalize"):
        finalize(model)


def test_finalize_restores_every_class():
    model = nn.Sequential(nn.Conv2d(2, 3, 1), Conv1D(3, 4))
    finalize(sparsify(model, EVERYTHING))
    assert [type(m) for m in model] == [nn.Conv2d, Conv1D]


def test_folded_is_the_same_model_and_leaves_no_trace():
    model = sparsify(mlp(6, 8, 4), EVERYTHING)
    x = torch.randn(5, 6)
    expected = model(x)
    with folded(model):
        assert torch.equal(model(x), expected)
        assert not model[0].sparse_weight().requires_grad
    with pytest.raises(RuntimeError, match="inside"), folded(model):
        raise RuntimeError("inside")
    model[0].weight.data.mul_(2)
    assert not torch.equal(model(x), expected)
    model(x).sum().backward()
    assert model[0].weight.grad is not None


def test_folded_blocks_may_be_nested():
    """As where `trainer.evaluate()` stands inside a user's own block."""
    model = sparsify(mlp(6, 8, 4), EVERYTHING)
    with folded(model):
        weights = [layer.folded for layer in model]
        with folded(model):
            assert all(layer.folded is weight for layer, weight in zip(model, weights, strict=True))
        assert all(layer.folded is weight for layer, weight in zip(model, weights, strict=True))
    assert all(layer.folded is None for layer in model)
    with folded(model[0]):
        with folded(model):
            assert all(layer.folded is not None for layer in model)
        assert model[0].folded is not None and model[1].folded is None
    assert model[0].folded is None


@pytest.mark.parametrize(
    "layer", [nn.Linear(6, 8), nn.Conv2d(2, 3, 2), Conv1D(8, 6)], ids=["Linear", "Conv2d", "Conv1D"]
)
def test_a_model_that_is_itself_one_layer(layer):
    model, dense = copy.deepcopy(layer), copy.deepcopy(layer)
    assert sparsify(model, EVERYTHING) is model
    assert list(sparse_layers(model)) == [""]
    assert layer_sparsity(model) == {"": pytest.approx(0.5, abs=0.05)}
    assert list(sparsifier_parameters(model)) == ["sparsifier.threshold"]
    assert list(plain_parameters(model)) == ["weight", "bias"]
    predicted = deployable_state_dict(model)
    assert "1 sparse layer" in str(sparsity_report(model))
    finalize(model)
    assert type(model) is type(layer) and layer_sparsity(model) == {"": pytest.approx(0.5, abs=0.05)}
    assert list(predicted) == list(model.state_dict()) == ["weight", "bias"]
    assert all(torch.equal(predicted[name], value) for name, value in model.state_dict().items())
    dense.load_state_dict(predicted)


def test_both_names_of_a_module_that_is_used_twice_are_deployed():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    model.append(model[0])
    sparsify(model, EVERYTHING)
    predicted = deployable_state_dict(model)
    finalize(model)
    assert list(predicted) == list(model.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert all(torch.equal(predicted[name], value) for name, value in model.state_dict().items())
    assert predicted["0.weight"] is predicted["2.weight"]


def test_copies_and_pickles():
    model = sparsify(mlp(6, 8, 4), EVERYTHING)
    x = torch.randn(2, 6)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), model(x))
        twin[0].weight.data.zero_()
        assert sparsity(twin) > sparsity(model)
        assert sparsity(finalize(twin)) > 0.5


def test_sparsity_of_a_model_without_layers():
    with pytest.raises(ValueError, match="no Linear, Conv2d or Conv1D"):
        sparsity(nn.LayerNorm(3))
    assert sparsity(nn.Linear(3, 3)) == 0.0


def test_guard_brings_a_layer_back_to_the_maximum():
    torch.manual_seed(0)
    layer = sparsify(mlp(40, 50), AutoSparseConfig(first_last="none", threshold_init=5.0))[0]
    assert (layer.sparse_weight() == 0).all()
    layer.sparsifier.limit_sparsity(layer.weight, 0.9)
    assert (layer.sparse_weight() == 0).float().mean().item() == pytest.approx(0.9)


def test_report():
    model = sparsify(GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=20)), AutoSparseConfig())
    report = sparsity_report(model)
    assert report.weights == 8 * 24 + 8 * 8 + 2 * 8 * 32
    assert report.sparsity == pytest.approx(0.5)
    assert report.layers[0].name == "transformer.h.0.attn.c_attn"
    assert report.layers[0].shape == (8, 24)
    assert report.layers[0].threshold == pytest.approx(0.0135, rel=0.2)  # the median of |N(0, 0.02)|
    assert "tied" in report.dense["lm_head"]
    text = str(report)
    assert "sparsity 50.00% of 768 weights in 4 sparse layers" in text
    assert "transformer.h.0.mlp.c_proj" in text and "lm_head" in text
    assert report.to_dict()["layers"][0]["shape"] == (8, 24)
    assert [row.threshold for row in sparsity_report(finalize(model)).layers] == [None] * 4


def test_convolutions_keep_channels_last():
    model = sparsify(nn.Sequential(nn.Conv2d(4, 4, 3)).to(memory_format=torch.channels_last), EVERYTHING)
    assert type(model[0]) is SparseConv2d
    weight = model[0].sparse_weight()
    assert weight.is_contiguous(memory_format=torch.channels_last)
    model(torch.randn(1, 4, 5, 5)).sum().backward()
    finalize(model)
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)

"""`prune` from end to end, in memory."""

import copy
import json

import pytest
import torch
import transformers
from torch import nn

from architectures import ARCHITECTURES
from hf_autosparse import AutoSparseConfig, sparsify
from hf_autosparse.oneshot.allocation import ERK, OWL
from hf_autosparse.oneshot.base import Pattern
from hf_autosparse.oneshot.prune import METHODS, prune
from hf_autosparse.oneshot.sparsegpt import SparseGPT
from hf_autosparse.oneshot.wanda import Wanda
from tiny import tiny_translator


def batches_of(architecture, count=12, size=4):
    examples = architecture.examples(count)
    groups = [examples[i : i + size] for i in range(0, count, size)]
    return [{key: torch.stack([example[key] for example in group]) for key in group[0]} for group in groups]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
def test_any_architecture(architecture, method):
    model = architecture.model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = prune(model, method=method, calibration=batches_of(architecture))
    assert report.sparsity == pytest.approx(0.5, abs=0.01)
    assert all(row.method == method and 0 <= row.error < 1 and not row.note for row in report.layers)
    assert sum(row.error > 0.01 for row in report.layers) > len(report.layers) / 2  # a 7 x 7 window of 1 x 1 pixels: 0
    after = model.state_dict()
    pruned = {name for name in after if not torch.equal(after[name], before[name])}
    expected = set()
    for row in report.layers:
        owner, _, last = row.name.rpartition(".")
        stacked = last.isdecimal() and owner in after
        weight = after[owner][int(last)] if stacked else after[f"{row.name}.weight"]
        assert row.shape == tuple(weight.shape)
        assert row.sparsity == pytest.approx((weight == 0).float().mean().item())
        expected.add(owner if stacked else f"{row.name}.weight")
    assert pruned == expected  # and nothing else has changed
    assert model.training and not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("name", ["gpt2-conv1d", "bart", "mixtral-moe", "convnext"])
def test_two_of_four(name):
    architecture = next(a for a in ARCHITECTURES if a.name == name)
    # a depthwise convolution has one input channel
    dense = ["dwconv"] if name == "convnext" else []
    model = architecture.model()
    report = prune(model, pattern="2:4", calibration=batches_of(architecture), dense_modules=dense)
    assert {row.sparsity for row in report.layers} == {0.5} and report.summary == "sparsegpt 2:4"


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))


@torch.no_grad()
def test_each_unit_sees_the_pruned_outputs_of_those_before_it():
    model, reference = mlp(), mlp()
    inputs = [torch.randn(20, 8) for _ in range(3)]
    report = prune(model, method="wanda", calibration=inputs, first_last="none")
    x = torch.cat(inputs)
    for i, row in zip((0, 2, 4), report.layers, strict=True):
        weight = reference[i].weight.unsqueeze(0)
        pruned = Wanda().prune(weight, (x.T @ x).unsqueeze(0), 0.5, None)
        assert torch.allclose(model[i].weight, pruned[0])
        error = ((weight[0] - pruned[0]) @ x.T).norm() / (weight[0] @ x.T).norm()
        assert row.error == pytest.approx(error.item(), rel=1e-4)
        x = model[i](x).relu()


@torch.no_grad()
def test_inside_a_unit_all_layers_see_the_dense_inputs():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x):
            return x + self.down(self.up(x).relu())

    torch.manual_seed(0)
    model = nn.Sequential(Block(), Block())
    block = model[0]
    x = torch.randn(30, 8)
    inner = block.up(x).relu()
    expected = Wanda().prune(block.down.weight.unsqueeze(0), (inner.T @ inner).unsqueeze(0), 0.5, None)[0]
    prune(model, method="wanda", calibration=[x], first_last="none")
    assert torch.allclose(block.down.weight, expected)


def test_better_methods_lose_less_of_the_output():
    torch.manual_seed(0)
    layer = nn.Linear(64, 64)
    x = torch.randn(400, 64) @ torch.randn(64, 64)
    errors = {}
    for method in ("magnitude", "wanda", SparseGPT(block_size=8)):
        report = prune(copy.deepcopy(layer), method=method, calibration=[x], first_last="none")
        errors[report.summary] = report.layers[0].error
    assert errors["sparsegpt"] < 0.8 * min(errors["wanda"], errors["magnitude"])


def test_magnitude_needs_no_calibration_and_then_knows_no_errors():
    model = mlp()
    weights = model[2].weight.detach().abs()
    report = prune(model, method="magnitude", sparsity=0.75)
    assert [row.name for row in report.layers] == ["2"]  # the first and last layer stay dense
    assert report.layers[0].error is None and report.sparsity == 0.75
    assert set(report.dense) == {"0", "4"}
    assert torch.equal(model[2].weight == 0, weights < weights.flatten().sort().values[96])


@pytest.mark.parametrize("allocation", [ERK(), OWL(outlier_ratio=1.5)])
def test_allocations_share_the_budget(allocation):
    architecture = next(a for a in ARCHITECTURES if a.name == "llama-untied")
    report = prune(architecture.model(), sparsity=0.6, allocation=allocation, calibration=batches_of(architecture))
    assert report.sparsity == pytest.approx(0.6, abs=0.01)
    assert len({round(row.sparsity, 2) for row in report.layers}) > 1
    assert report.summary == f"sparsegpt {allocation.name}"


def test_owl_gives_the_layers_of_a_block_the_same():
    architecture = next(a for a in ARCHITECTURES if a.name == "llama-untied")
    report = prune(architecture.model(), method="magnitude", allocation=OWL(1.5), calibration=batches_of(architecture))
    by_block = [[r.sparsity for r in report.layers if r.name.startswith(f"model.layers.{i}")] for i in (0, 1)]
    assert all(max(sparsities) - min(sparsities) < 1 / 32 for sparsities in by_block)  # rounded to whole weights
    assert abs(by_block[0][-1] - by_block[1][-1]) == pytest.approx(0.16, abs=1 / 32)


def mixtral(experts):
    transformers.set_seed(0)
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    config = transformers.MixtralConfig(vocab_size=40, num_key_value_heads=1, num_local_experts=experts, **size)
    return transformers.MixtralForCausalLM(config)


@pytest.mark.parametrize("unreached, method", [("dense", None), ("magnitude", "magnitude")])
def test_an_expert_that_no_token_reaches(unreached, method):
    few = [{"input_ids": torch.tensor([[5]])}]  # one token goes to two of eight experts
    report = prune(mixtral(8), calibration=few, unreached=unreached)
    noted = [row for row in report.layers if row.note]
    assert len(noted) == 12 and {row.method for row in noted} == {method}
    assert all(row.note.startswith("no calibration example reaches it") and row.error is None for row in noted)
    assert {row.sparsity for row in noted} == {0.5 if method else 0.0}
    assert "not as asked" in str(report) and "12 of them: no calibration example reaches it" in report.to_markdown()


def test_a_block_that_nothing_reaches():
    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])

        def forward(self, x):
            return self.layers[2](self.layers[0](x))

    report = prune(Skips(), calibration=[torch.randn(9, 4)], first_last="none")
    assert [row.method for row in report.layers] == ["sparsegpt", None, "sparsegpt"]
    assert report.layers[1].note == "no calibration example reaches it: left dense"


def test_experts_whose_inputs_cannot_be_seen_are_pruned_by_magnitude():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.num_experts = 2
            self.weight = nn.Parameter(torch.randn(2, 4, 4))

        def forward(self, x):
            return torch.einsum("eoi,bi->bo", self.weight, x)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.router, self.experts = nn.Linear(4, 4), Experts()

        def forward(self, x):
            return self.experts(self.router(x))

    model = nn.Sequential(Block(), Block())
    report = prune(model, calibration=[torch.randn(9, 4)], first_last="none")
    assert [row.name for row in report.layers[:3]] == ["0.router", "0.experts.weight.0", "0.experts.weight.1"]
    experts = [row for row in report.layers if "experts" in row.name]
    assert {row.note for row in experts} == {"its inputs cannot be seen from outside: pruned by magnitude"}
    assert {row.method for row in experts} == {"magnitude"} and {row.sparsity for row in experts} == {0.5}


def test_the_model_is_left_as_it_was_but_for_its_weights():
    model = tiny_translator()
    model.get_encoder().eval()
    training = [module.training for module in model.modules()]
    ids = torch.randint(4, 60, (2, 8))
    prune(model, calibration=[{"input_ids": ids, "labels": ids}])
    assert [module.training for module in model.modules()] == training
    assert model.config.use_cache
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    architecture = next(a for a in ARCHITECTURES if a.name == "llama-untied")
    model = architecture.model().to(dtype)
    report = prune(model, calibration=batches_of(architecture))
    assert report.sparsity == 0.5 and all(p.dtype == dtype for p in model.parameters())


def test_the_output_is_a_plain_checkpoint_with_its_report_and_card(tmp_path):
    architecture = next(a for a in ARCHITECTURES if a.name == "mixtral-moe")
    model = architecture.model()
    report = prune(
        model, method=SparseGPT(percdamp=0.02), calibration=batches_of(architecture), output=tmp_path / "out"
    )
    loaded = transformers.MixtralForCausalLM.from_pretrained(tmp_path / "out")
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
    values = json.loads((tmp_path / "out" / "autosparse_pruning.json").read_text())
    assert values == json.loads(report.to_json()) and values["sparsity"] == 0.5 and len(values["layers"]) == 20
    card = (tmp_path / "out" / "README.md").read_text()
    assert "library_name: transformers" in card and "- sparsegpt" in card and "# out\n" in card
    assert "Frantar and Alistarh 2023, SparseGPT, arXiv 2301.00774), percdamp 0.02, block_size 128" in card
    assert "sparsity 50.00%, uniform over the layers. 50.00% of the" in card
    assert "Calibration: 3 examples of a list." in card and "median" in card
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_the_report_as_text():
    report = prune(mlp(), method="magnitude", calibration=[torch.randn(9, 8)])
    text = str(report)
    assert (
        "magnitude: sparsity 50.00% of 128 weights in 1 layers" in text and "8 x 16" in text and "output error" in text
    )
    assert "first layer (first_last='modules')" in text


ONE = {"calibration": [torch.ones(1, 8)]}


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"method": "obs"}, "method = 'obs' is not allowed: use one of 'magnitude', 'wanda', 'sparsegpt'"),
        ({"allocation": "x"}, "allocation = 'x' is not allowed: use one of 'uniform', 'erk', 'owl'"),
        ({"unreached": "x"}, "unreached = 'x' is not allowed: use one of 'dense', 'magnitude'"),
        ({"sparsity": 1.0}, r"sparsity = 1.0 is not allowed: use a number in \[0, 1\)"),
        ({"sparsity": 50}, r"sparsity = 50 is not allowed: use a number in \[0, 1\)"),
        ({"pattern": "2"}, "pattern = '2' is not allowed: use N:M"),
        ({"pattern": "1:4", "sparsity": 0.5}, "0.5 is not allowed with pattern '1:4', whose sparsity is 0.75: leave"),
        ({"pattern": "2:4", "allocation": "erk"}, "allocation = 'erk' is not allowed with pattern '2:4'"),
        ({"pattern": "2:5"}, "pattern = '2:5' is not allowed for 2: their inputs do not divide into groups of 5"),
        ({"calibration": None}, "method = 'sparsegpt' needs inputs: give calibration, a text file or some batches"),
        ({"calibration": None, "method": "magnitude", "allocation": "owl"}, "allocation = 'owl' needs inputs"),
        ({"samples": 0}, "samples = 0 is not allowed: use a whole number, 1 or more"),
        ({"target_modules": ["nothing"]}, "pattern 'nothing' matches no layer"),
        ({"output": "x"}, "output = 'x' is not allowed for a Sequential, which has no save_pretrained: leave it out"),
    ],
)
def test_bad_settings(settings, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        prune(mlp(), **(ONE | settings))


def test_owl_with_data_that_reach_nothing():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

        def forward(self, x):
            return x

    with pytest.raises(ValueError, match="allocation = 'owl' needs inputs, but no calibration example reaches a layer"):
        prune(Idle(), allocation="owl", calibration=[torch.ones(1, 4)], first_last="none")


def test_inputs_that_are_not_finite_are_named():
    with pytest.raises(ValueError, match="2: the Hessian of its inputs is not positive definite"):
        prune(mlp(), calibration=[torch.full((3, 8), torch.nan)])


def test_an_output_that_exists(tmp_path):
    with pytest.raises(FileExistsError, match="exists: remove it, or choose another directory"):
        prune(tiny_translator(), method="magnitude", output=tmp_path)


def test_a_sparse_model_is_refused():
    model = tiny_translator()
    sparsify(model, AutoSparseConfig())
    with pytest.raises(ValueError, match="already sparse: call finalize"):
        prune(model, method="magnitude")


def test_a_pattern_of_more_than_nine():
    assert Pattern.parse("8:16").m == 16

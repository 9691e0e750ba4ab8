"""A target's matrices times its rows are the layer's output, and what is written back is what was read."""

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_autosparse.oneshot.inputs import Grams, collect
from hf_autosparse.oneshot.lockstep import Batch
from hf_autosparse.oneshot.targets import Conv2dTarget, ExpertTarget, LinearTarget, find_targets
from hf_autosparse.oneshot.units import find_units

LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), (2, 5, 6)),
    "conv1d": (lambda: Conv1D(4, 6), (2, 5, 6)),
    "conv2d": (lambda: nn.Conv2d(3, 4, (3, 2)), (2, 3, 7, 6)),
    "strided": (lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1, dilation=2), (2, 3, 9, 8)),
    "same": (lambda: nn.Conv2d(3, 4, (4, 3), padding="same"), (2, 3, 7, 6)),
    "reflected": (lambda: nn.Conv2d(3, 4, 3, padding=(1, 2), padding_mode="reflect"), (2, 3, 7, 6)),
    "grouped": (lambda: nn.Conv2d(6, 4, 3, groups=2, padding=1), (2, 6, 5, 5)),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4), (2, 4, 5, 5)),
    "one image": (lambda: nn.Conv2d(3, 4, 3), (3, 5, 5)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # one more column on one side
@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_matrices_and_rows(name):
    torch.manual_seed(0)
    build, shape = LAYERS[name]
    layer, x = build(), torch.randn(shape)
    target = (Conv2dTarget if isinstance(layer, nn.Conv2d) else LinearTarget)("layer", layer)
    layer.bias.zero_()
    if isinstance(layer, Conv1D):
        layer.weight.normal_()
    matrices, rows = target.matrices(), target.rows(x)
    products = matrices @ rows.mT  # groups, outputs, rows
    if isinstance(layer, nn.Conv2d):
        output = layer(x if x.dim() == 4 else x.unsqueeze(0))
        groups = layer.groups
        expected = output.reshape(len(output), groups, -1, output[0, 0].numel()).permute(1, 2, 0, 3).flatten(2)
    else:
        expected = layer(x).flatten(0, -2).T.unsqueeze(0)
    assert torch.allclose(products, expected, atol=1e-5)

    before = layer.weight.clone()
    target.write(matrices.clone() * 2)
    assert torch.equal(layer.weight, before * 2)
    assert target.shape == tuple(before.shape)


def test_consecutive_inputs():
    conv = nn.Conv2d(8, 2, 3, groups=2)
    target = Conv2dTarget("conv", conv)
    assert target.consecutive == 4
    assert torch.equal(target.matrices()[0, 0, :4], conv.weight[0, :, 0, 0])  # along the channels
    assert LinearTarget("linear", nn.Linear(6, 4)).consecutive == 6
    assert LinearTarget("conv1d", Conv1D(4, 6)).consecutive == 6


def mixtral(experts: int = 3) -> transformers.MixtralForCausalLM:
    transformers.set_seed(0)
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    config = transformers.MixtralConfig(vocab_size=40, num_key_value_heads=1, num_local_experts=experts, **size)
    return transformers.MixtralForCausalLM(config).eval()


def test_each_expert_is_a_target_and_patterns_hold_for_them():
    names = {target.name for target in find_targets(mixtral(), None, [], "modules")[0]}
    assert {f"model.layers.0.mlp.experts.{w}.{i}" for w in ("gate_up_proj", "down_proj") for i in range(3)} < names
    targets, dense = find_targets(mixtral(), ["q_proj", "k_proj"], [], "modules")
    assert [target.name.rpartition(".")[2] for target in targets] == ["q_proj", "k_proj"]
    assert "stacked weights" in dense["model.layers.0.mlp.experts"]


@torch.no_grad()
def test_an_expert_sees_the_tokens_that_are_sent_to_it():
    model = mixtral()
    targets, _ = find_targets(model, None, [], "modules")
    (unit,) = find_units(model, targets)
    hidden = torch.randn(2, 5, 8)
    layer = unit.module.mlp
    unit = type(unit)("mlp", layer, tuple(t for t in targets if isinstance(t, ExpertTarget)))
    before = model.config._experts_implementation
    grams = collect(unit, iter([Batch((hidden,), {})])).by_name
    assert model.config._experts_implementation == before
    _, _, chosen = layer.gate(hidden.reshape(-1, 8))
    for expert in range(3):
        own = hidden.reshape(-1, 8)[(chosen == expert).any(-1)]
        gate_up, down = (f"model.layers.0.mlp.experts.{w}.{expert}" for w in ("gate_up_proj", "down_proj"))
        assert torch.allclose(grams[gate_up][0], own.T @ own, atol=1e-5)
        gate, up = F.linear(own, layer.experts.gate_up_proj[expert]).chunk(2, -1)
        inner = F.silu(gate) * up
        assert torch.allclose(grams[down][0], inner.T @ inner, atol=1e-5)


@torch.no_grad()
def test_experts_that_are_stored_transposed():
    transformers.set_seed(0)
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    config = transformers.GptOssConfig(
        vocab_size=40, num_key_value_heads=1, head_dim=4, num_local_experts=3, num_experts_per_tok=2, **size
    )
    model = transformers.GptOssForCausalLM(config).eval()
    targets = [t for t in find_targets(model, None, [], "modules")[0] if isinstance(t, ExpertTarget)]
    assert len(targets) == 6 and all(target.transposed for target in targets)
    down = next(target for target in targets if target.parameter_name == "down_proj")
    assert torch.equal(down.matrices()[0], down.parameter[0].T) and down.consecutive == down.parameter.shape[1]
    experts = targets[0].module
    unit = find_units(model, targets)[0]
    unit = type(unit)("experts", experts, tuple(targets))
    hidden = torch.randn(6, 8)
    chosen = torch.tensor([[0, 1]] * 4 + [[1, 2]] * 2)
    grams = collect(unit, iter([Batch((hidden, chosen, torch.full((6, 2), 0.5)), {})])).by_name
    name = next(target.name for target in targets if target.parameter_name == "gate_up_proj" and target.expert == 0)
    assert torch.allclose(grams[name][0], hidden[:4].T @ hidden[:4], atol=1e-5)
    down.write(torch.zeros_like(down.matrices()))
    assert not down.parameter[0].any() and down.parameter[1].any()


@torch.no_grad()
def test_a_unit_that_changes_its_input_is_refused():
    class Careless(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x):
            return self.linear(x.add_(1))

    module = Careless()
    target = LinearTarget("block.linear", module.linear)
    unit = find_units(nn.ModuleDict({"block": nn.Sequential(module)}), [])
    assert unit == []
    from hf_autosparse.oneshot.units import Unit

    with pytest.raises(
        ValueError, match="block changes its input in place, so its inputs are lost: list its layers in"
    ):
        collect(Unit("block", module, (target,)), iter([Batch((torch.ones(2, 3),), {})]))


def test_no_rows_are_no_inputs():
    grams = Grams()
    grams.add(LinearTarget("linear", nn.Linear(3, 2)), torch.empty(1, 0, 3))
    assert not grams.by_name


def test_units_are_the_entries_of_the_outermost_lists_and_single_layers():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Linear(2, 2)
            self.stages = nn.ModuleList([nn.ModuleList([nn.Sequential(nn.Linear(2, 2))]), nn.ModuleList([nn.GELU()])])
            self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) for _ in range(2)])
            self.head = nn.Sequential(nn.LayerNorm(2), nn.Linear(2, 2))

    model = Model()
    targets = [LinearTarget(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    units = find_units(model, targets)
    assert [unit.name for unit in units] == ["stem", "stages.0.0", "blocks.0", "blocks.1", "head.1"]
    assert [len(unit.targets) for unit in units] == [1, 1, 2, 2, 1]


def test_a_layer_alone_is_a_unit():
    layer = nn.Linear(2, 2)
    assert [unit.name for unit in find_units(layer, [LinearTarget("", layer)])] == [""]

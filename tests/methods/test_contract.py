"""The contract that every registered method keeps."""

import copy
import dataclasses
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from torch import nn

import drive
import hf_autosparse
from hf_autosparse import (
    AutoSparseConfig,
    ContinuousConfig,
    DSTConfig,
    FixedMaskConfig,
    GMPConfig,
    ITOPConfig,
    LTPConfig,
    MESTConfig,
    NMConfig,
    OptGConfig,
    RigLConfig,
    SCLConfig,
    SETConfig,
    SNFSConfig,
    SparseConfig,
    STRConfig,
    SWATConfig,
    TopKASTConfig,
    finalize,
    sparse_layers,
    sparsify,
    sparsity,
)
from hf_autosparse.methods import available_methods, config_class, method_of
from hf_autosparse.methods.base import _SPARSIFIERS
from hf_autosparse.methods.config import _CLASSES
from hf_autosparse.reports.flops import step_fraction
from paths import HELPERS, PYTHONPATH, ROOT
from tiny import assert_same_state
from update_rules import step, update

SHARED = {"first_last": "none"}
HALF = SHARED | {"target_sparsity": 0.6}
CONFIGS = [
    AutoSparseConfig(**SHARED, threshold_init={"sparsity": 0.6}),
    ContinuousConfig(**SHARED, score_init=0.0),
    DSTConfig(**SHARED, penalty=0.01),
    FixedMaskConfig(),
    GMPConfig(**HALF, every=2),
    ITOPConfig(**HALF, every=3),
    LTPConfig(**SHARED, penalty=1e-4),
    MESTConfig(**HALF, every=3, soft_memory_bound=True, gradient_weight=0.1),
    NMConfig(**SHARED, n=1, m=4),
    OptGConfig(**HALF),
    RigLConfig(**HALF, every=3),
    SCLConfig(**SHARED, penalty=0.05),
    SETConfig(**HALF, every=3),
    SNFSConfig(**HALF, every=3),
    STRConfig(**SHARED, threshold_init={"sparsity": 0.6}),
    SWATConfig(**HALF, every=2),
    TopKASTConfig(**HALF, backward_sparsity=0.3, every=3, l2=1e-4, power=2.0),
]
EVERY = HALF | {"every": 1}


@pytest.fixture(params=CONFIGS, ids=lambda config: config.method)
def config(request):
    return request.param


def test_all_registered_methods_are_tested():
    assert [config.method for config in CONFIGS] == available_methods()


def test_config_survives_json(config):
    assert SparseConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_the_reference_is_stated(config):
    found = type(config)
    assert config_class(config.method) is found and found.__doc__
    assert method_of(found).reference and method_of(found).__doc__


def test_trains_to_its_sparsity_resumes_and_finalizes_exactly(config):
    model = drive.sparse_net(config)
    optimizer = drive.optimizer_of(model)
    before = {name: layer.weight.detach().clone() for name, layer in sparse_layers(model).items()}
    drive.drive(model, optimizer, 0, 6)
    saved = copy.deepcopy([model.state_dict(), optimizer.state_dict()])
    drive.drive(model, optimizer, 6, 12)

    resumed = drive.sparse_net(config, seed=1)
    resumed_optimizer = drive.optimizer_of(resumed)
    resumed.load_state_dict(saved[0])
    resumed_optimizer.load_state_dict(saved[1])
    drive.drive(resumed, resumed_optimizer, 6, 12)
    assert_same_state(model, resumed)

    layers = sparse_layers(model)
    assert all(not torch.equal(layer.weight, before[name]) for name, layer in layers.items())
    assert all(layer.sparsifier._gradient is None for layer in layers.values())
    masks = {name: layer.sparsifier.mask(layer.weight) for name, layer in layers.items()}
    exact = 0.75 if isinstance(config, NMConfig) else getattr(config, "target_sparsity", None)
    reached = sparsity(model)
    assert reached == pytest.approx(exact, abs=0.01) if exact else 0.05 < reached < 0.95
    inputs = drive.batch(0)[0]
    with torch.no_grad():
        sparse = model.eval()(inputs)
        torch.testing.assert_close(finalize(model)(inputs), sparse, atol=0, rtol=0)
    assert sparsity(model) == reached
    assert not any(model.get_submodule(name).weight[~mask].any() for name, mask in masks.items())


def test_accumulation_changes_nothing(config):
    states = []
    for parts in (1, 4):
        model = drive.sparse_net(config)
        drive.drive(model, drive.optimizer_of(model), 0, 8, parts=parts)
        states.append(model.state_dict())
    for name, whole in states[0].items():
        torch.testing.assert_close(states[1][name], whole, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_bf16(config):
    model = drive.sparse_net(config)
    for layer in sparse_layers(model).values():
        layer.sparsifier.begin_step(step(1))
    inputs, labels = drive.batch(0)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(inputs)
    assert out.dtype == torch.bfloat16
    nn.functional.cross_entropy(out.float(), labels).backward()
    assert all(layer.weight.grad.isfinite().all() for layer in sparse_layers(model).values())
    model.to(torch.bfloat16)
    assert all(layer.sparse_weight().dtype == torch.bfloat16 for layer in sparse_layers(model).values())


def test_gradients_are_zero_where_the_method_says_so(config):
    """What the theoretical FLOPs leave out is left out."""
    model = drive.sparse_net(config)
    optimizer = drive.optimizer_of(model)
    drive.drive(model, optimizer, 0, 5)
    for layer in sparse_layers(model).values():
        layer.sparsifier.begin_step(step(5, of=12))
    inputs, labels = drive.batch(5)
    expected = {n: layer.sparsifier.gradient_mask(layer.weight) for n, layer in sparse_layers(model).items()}
    nn.functional.cross_entropy(model(inputs), labels).backward()
    for name, layer in sparse_layers(model).items():
        count = layer.sparsifier.gradient_count(layer.weight)
        assert count.dtype == torch.int64 and 0 < count <= layer.weight.numel()
        if expected[name] is not None:
            assert not layer.weight.grad[~expected[name]].any() and count >= expected[name].sum()


def test_two_processes_equal_one(tmp_path):
    """All methods in one launch; the masks agree between the processes, too."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    command += [str(HELPERS / "drive.py"), str(tmp_path)]
    (tmp_path / "configs.json").write_text(json.dumps([config.to_dict() for config in CONFIGS]))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    for config in CONFIGS:
        name = config.method
        first, second = (torch.load(tmp_path / f"{name}-{rank}.pt") for rank in (0, 1))
        model = drive.sparse_net(config)
        drive.drive(model, drive.optimizer_of(model), 0, 8)
        for key, single in model.state_dict().items():
            assert torch.equal(first[key], second[key]), f"{name}: {key}"
            torch.testing.assert_close(first[key], single, atol=1e-5, rtol=1e-4, msg=lambda m: f"{name}: {key}: {m}")  # noqa: B023


@pytest.mark.parametrize("config", [RigLConfig(**EVERY), SNFSConfig(**EVERY), MESTConfig(**EVERY, gradient_weight=0.5)])
def test_a_layer_that_a_step_did_not_use_keeps_its_number_of_weights(config):
    layer = sparsify(nn.Linear(8, 8), config)
    before = layer.sparsifier.kept.clone()
    layer.sparsifier.begin_step(step(0))
    grown = update(layer, 1)
    assert layer.sparsifier.kept.sum() == before.sum()
    assert config.method != "rigl" or (grown is None and torch.equal(layer.sparsifier.kept, before))


DENSITY = 0.2235


@pytest.mark.parametrize(
    ("config", "published"),
    [
        (TopKASTConfig(target_sparsity=1 - DENSITY), 0.48),  # (2 F + 1) / 3
        (TopKASTConfig(target_sparsity=1 - DENSITY, backward_sparsity=1 - 0.5147), 0.32),
        (RigLConfig(target_sparsity=1 - DENSITY, every=100), 0.226),  # (3 F every + 2 F + 1) / 3 (every + 1), appendix
        (SETConfig(target_sparsity=1 - DENSITY), 0.2235),
    ],
)
def test_training_flops_at_uniform_80_percent(config, published):
    """ResNet-50 with its first and last layer dense: F = .2235, here as the density of one layer."""
    layer = sparsify(nn.Linear(100, 100), dataclasses.replace(config, first_last="none"))
    layer.sparsifier.begin_step(step(1, of=1000))
    density = layer.sparsifier.mask(layer.weight).float().mean().item()
    cost = layer.sparsifier.gradient_count(layer.weight).item() / layer.weight.numel()
    assert step_fraction(density, cost) == pytest.approx(published, abs=0.003)


def test_adding_a_method_as_documented():
    page = (ROOT / "docs" / "add_a_method.md").read_text()
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    imports = re.findall(r"^(?:from|import) (hf_autosparse\S*)", code, re.MULTILINE)
    assert imports[0] == "hf_autosparse.methods" and set(imports) == {"hf_autosparse", "hf_autosparse.methods"}
    assert code.index("# Use it") > code.index("@register")
    method = code[code.index("@dataclass") : code.index("# Use it")]
    assert len([line for line in method.splitlines() if line.strip()]) <= 40
    try:
        names = {}
        exec(code, names)
        assert sparsity(names["model"]) == pytest.approx(0.8, abs=1e-3)
        settings = {"method": "movement", "target_sparsity": 0.6, "first_last": "none"}
        model = drive.sparse_net(SparseConfig.from_dict(settings))
        drive.drive(model, drive.optimizer_of(model), 0, 8)
        masks = [layer.sparsifier.mask(layer.weight).flatten() for layer in sparse_layers(model).values()]
        assert torch.cat(masks).float().mean().item() == pytest.approx(0.4, abs=0.01)
    finally:
        _SPARSIFIERS.pop(_CLASSES.pop("movement", None), None)


def test_every_method_is_documented_and_exported():
    page = (ROOT / "docs" / "methods.md").read_text()
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], {})
    assert set(re.findall(r"^\| `(\w+Config)` \|", page, re.MULTILINE)) == {
        config_class(name).__name__ for name in available_methods()
    } - {"FixedMaskConfig"}
    for name in available_methods():
        found = config_class(name)
        assert getattr(hf_autosparse, found.__name__) is found and found.__name__ in hf_autosparse.__all__
        for field in dataclasses.fields(found):
            documented = any(f"        {field.name}: " in (cls.__doc__ or "") for cls in found.__mro__)
            assert documented, f"{name}: {field.name}"
            assert f"`{field.name}`" in page, f"{name}: {field.name}"

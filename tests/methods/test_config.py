"""Configurations: what they refuse, and how they are read and written."""

import copy
import dataclasses
import json
import re
from dataclasses import dataclass
from typing import ClassVar

import pytest
from torch import nn

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
    RigLConfig,
    SCLConfig,
    SETConfig,
    SNFSConfig,
    SparseConfig,
    STRConfig,
    SWATConfig,
    TopKASTConfig,
    sparsify,
)
from hf_autosparse.methods import CONFIG_NAME, Sparsifier, config_class, method_of, register
from hf_autosparse.methods.version_1 import DEFAULTS

CONFIG = AutoSparseConfig(
    alpha_schedule="exponential",
    alpha_zero_epoch=10,
    threshold_init={"sparsity": 0.6},
    dense_modules=["lm_head"],
    backward_sparsity=0.5,
)


# ---- Values ----


@pytest.mark.parametrize(
    ("config", "field", "value", "allowed"),
    [
        (AutoSparseConfig, "alpha_init", 1.5, "[0, 1]"),
        (AutoSparseConfig, "alpha_init", float("nan"), "[0, 1]"),
        (AutoSparseConfig, "alpha_init", "0.5", "[0, 1]"),
        (AutoSparseConfig, "alpha_init", None, "[0, 1]"),
        (AutoSparseConfig, "alpha_schedule", "cosin", "'cosine'"),
        (AutoSparseConfig, "alpha_beta", -1, "[0, inf)"),
        (AutoSparseConfig, "alpha_epochs", 0, "(0, inf) or None"),
        (AutoSparseConfig, "alpha_zero_epoch", -1, "[0, inf) or None"),
        (AutoSparseConfig, "alpha_update", "batch", "'epoch', 'step'"),
        (AutoSparseConfig, "backward_sparsity", 1.0, "[0, 1) or None"),
        (AutoSparseConfig, "threshold_init", {"sparsity": 1.0}, "[0, 1)"),
        (AutoSparseConfig, "threshold_init", {"density": 0.5}, '{"sparsity": x}'),
        (AutoSparseConfig, "threshold_init", {"sparsity": 0.995}, "max_layer_sparsity = 0.99"),
        (AutoSparseConfig, "threshold_init", float("inf"), "finite"),
        (AutoSparseConfig, "threshold_init", "0", "finite"),
        (AutoSparseConfig, "threshold_granularity", "row", "'layer', 'channel'"),
        (AutoSparseConfig, "threshold_lr", -0.1, "[0, inf) or None"),
        (AutoSparseConfig, "threshold_weight_decay", None, "[0, inf)"),
        (AutoSparseConfig, "clip_thresholds", 1, "True or False"),
        (AutoSparseConfig, "target_modules", "fc1", "list of module name patterns"),
        (AutoSparseConfig, "dense_modules", [""], "list of module name patterns"),
        (AutoSparseConfig, "first_last", "layers", "'modules', 'blocks', 'none'"),
        (AutoSparseConfig, "compute", "csr", "'dense', 'sparse', 'auto'"),
        (AutoSparseConfig, "max_layer_sparsity", 1.0, "(0, 1)"),
        (GMPConfig, "target_sparsity", 1.0, "[0, 1)"),
        (GMPConfig, "target_sparsity", None, "[0, 1)"),
        (GMPConfig, "until", 0, "(0, 1]"),
        (GMPConfig, "every", 0.5, "a whole number, 1 or more"),
        (SETConfig, "sparsity_distribution", "x", "'uniform', 'erk'"),
        (SETConfig, "drop_fraction", 2, "(0, 1]"),
        (ITOPConfig, "growth", "x", "'gradient', 'random'"),
        (SNFSConfig, "momentum", 1, "[0, 1)"),
        (MESTConfig, "mutation_fraction", 0, "(0, 1]"),
        (MESTConfig, "soft_memory_bound", 1, "True or False"),
        (MESTConfig, "gradient_weight", -1, "[0, inf)"),
        (SWATConfig, "every", 0, "a whole number, 1 or more"),
        (SWATConfig, "activation_sparsity", 1, "[0, 1) or None"),
        (TopKASTConfig, "backward_sparsity", 1.0, "[0, 1) or None"),
        (TopKASTConfig, "every", 0, "a whole number, 1 or more"),
        (TopKASTConfig, "power", 0.5, "[1, inf)"),
        (TopKASTConfig, "l2", -1, "[0, inf)"),
        (DSTConfig, "penalty", -1, "[0, inf)"),
        (LTPConfig, "temperature", 0, "(0, inf)"),
        (LTPConfig, "penalty", -1, "[0, inf)"),
        (ContinuousConfig, "final_temperature", 0.5, "[1, inf)"),
        (ContinuousConfig, "score_init", None, "a number"),
        (ContinuousConfig, "penalty", -1, "[0, inf)"),
        (SCLConfig, "score_init", 0, "(0, inf)"),
        (SCLConfig, "penalty", -1, "[0, inf)"),
        (NMConfig, "n", 4, "less than m = 4"),
        (NMConfig, "n", 0, "a whole number, 1 or more"),
        (NMConfig, "m", 1, "a whole number, 2 or more"),
        (NMConfig, "pruned_decay", -1, "[0, inf)"),
    ],
)
def test_invalid_value_names_field_value_and_what_is_allowed(config, field, value, allowed):
    needed = {"target_sparsity": 0.5} if config not in (AutoSparseConfig, NMConfig) else {}
    message = re.escape(f"{config.__name__}.{field} = {value!r} is not allowed: use ")
    with pytest.raises(ValueError, match=message) as error:
        config(**(needed | {field: value}))
    assert allowed in str(error.value)


def test_a_soft_mask_has_no_zeros_to_skip():
    for config in (LTPConfig, ContinuousConfig):
        with pytest.raises(ValueError, match=f"{config.__name__}.compute = 'auto' is not allowed: .* soft mask"):
            config(compute="auto")


def test_the_base_is_no_configuration():
    with pytest.raises(TypeError, match="SparseConfig is only a base: use a method's configuration"):
        SparseConfig()


def test_defaults_of_the_methods():
    assert (AutoSparseConfig().alpha_init, AutoSparseConfig().alpha_schedule) == (0.75, "sigmoid-cosine")
    assert (NMConfig().alpha_init, NMConfig().alpha_schedule) == (1.0, "fixed")
    assert GMPConfig(target_sparsity=0.5).alpha_init == 0.0
    assert (AutoSparseConfig().first_last, FixedMaskConfig().first_last) == ("modules", "none")
    assert (AutoSparseConfig().sparsity_limit, RigLConfig(target_sparsity=0.5).sparsity_limit) == (0.99, 1.0)


# ---- Fields: what a method lacks does not exist ----


def test_an_argument_of_another_method_is_a_type_error():
    with pytest.raises(TypeError, match="alpha_init"):
        STRConfig(alpha_init=0.5)
    with pytest.raises(TypeError, match="'method'"):
        AutoSparseConfig(method="rigl")
    with pytest.raises(TypeError, match="target_sparsity"):
        RigLConfig()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "autosparse", "alpha_shedule": "cosine"}, "no field 'alpha_shedule': did you mean alpha_schedule"),
        (
            {"method": "set", "target_sparsity": 0.8, "alpha_init": 0.5},
            "SETConfig has no field 'alpha_init': methods with such a field: autosparse, gmp, nm, swat, topkast$",
        ),
        ({"method": "nm", "target_sparsity": 0.5}, "NMConfig has no field 'target_sparsity': .*continuous, dst, gmp"),
        ({"method": "autosparse", "every": 3}, "AutoSparseConfig has no field 'every': .*gmp, itop"),
        (
            {"method": "fixed_mask", "zzz": 3},
            "FixedMaskConfig has no field 'zzz': it has target_modules",
        ),
        ({"method": "rigl"}, "RigLConfig.target_sparsity is missing: method 'rigl' needs it"),
        ({"method": "nope"}, "method = 'nope' is not allowed: use one of 'autosparse', 'continuous'"),
        ({"method": 3}, "method = 3 is not allowed: use one of 'autosparse'"),
        ({}, "no method is given: add one of autosparse, continuous, .* as 'method'"),
        ({"method": "autosparse", "options": 3}, "options = 3 is not allowed: use a dict"),
        ({"method": "nm", "options": {"k": 3}}, "NMConfig has no field 'k'"),
    ],
)
def test_bad_dicts(values, message):
    with pytest.raises(ValueError, match=message):
        SparseConfig.from_dict(values)


def test_a_method_reads_its_own_dicts_only():
    assert RigLConfig.from_dict({"target_sparsity": 0.5}) == RigLConfig(target_sparsity=0.5)
    with pytest.raises(ValueError, match="method = 'rigl' is that of RigLConfig, not of AutoSparseConfig"):
        AutoSparseConfig.from_dict({"method": "rigl", "target_sparsity": 0.5})


# ---- Frozen ----


def test_a_configuration_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CONFIG.alpha_init = 0.5
    changed = dataclasses.replace(CONFIG, alpha_init=0.5)
    assert changed.alpha_init == 0.5 and changed != CONFIG and dataclasses.replace(changed, alpha_init=0.75) == CONFIG
    with pytest.raises(ValueError, match="alpha_init = 2 is not allowed"):
        dataclasses.replace(CONFIG, alpha_init=2)


def test_a_configuration_does_not_change_with_what_it_was_made_of():
    patterns, init = ["fc1"], {"sparsity": 0.5}
    config = AutoSparseConfig(target_modules=patterns, threshold_init=init)
    patterns.append("fc2")
    init["sparsity"] = 2.0
    assert config.target_modules == ("fc1",) and config.threshold_init == {"sparsity": 0.5}
    assert config == AutoSparseConfig(target_modules=("fc1",)) == copy.deepcopy(config)


# ---- Files ----


def test_json_round_trip(tmp_path):
    assert CONFIG.to_dict()["method"] == "autosparse" and CONFIG.to_dict()["dense_modules"] == ["lm_head"]
    assert SparseConfig.from_dict(json.loads(json.dumps(CONFIG.to_dict()))) == CONFIG
    CONFIG.save_pretrained(tmp_path / "new")
    assert (
        SparseConfig.from_pretrained(tmp_path / "new") == CONFIG == AutoSparseConfig.from_pretrained(tmp_path / "new")
    )
    assert [p.name for p in (tmp_path / "new").iterdir()] == [CONFIG_NAME]
    assert json.loads((tmp_path / "new" / CONFIG_NAME).read_text())["format_version"] == 2
    with pytest.raises(ValueError, match="'autosparse' is that of AutoSparseConfig, not of RigLConfig"):
        RigLConfig.from_pretrained(tmp_path / "new")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "holds a list"),
        ("{}", "format_version None"),
        ('{"format_version": 99}', "format_version 99"),
        ('{"format_version": 1, "alpha_init": 3}', "alpha_init = 3"),
        ('{"format_version": 2, "method": "autosparse", "alpha_init": 3}', "alpha_init = 3"),
        ('{"format_version": 2}', "no method is given"),
    ],
)
def test_bad_files(tmp_path, content, message):
    (tmp_path / CONFIG_NAME).write_text(content)
    with pytest.raises(ValueError, match=message):
        SparseConfig.from_pretrained(tmp_path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=CONFIG_NAME):
        SparseConfig.from_pretrained(tmp_path)


# ---- Format version 1 ----


def read(tmp_path, **values) -> SparseConfig:
    """What is read of a file of version 1, which held every field."""
    (tmp_path / CONFIG_NAME).write_text(json.dumps({"format_version": 1, "options": {}} | DEFAULTS | values))
    return SparseConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"method": "autosparse", "alpha_init": 0.5, "alpha_schedule": "linear"}, {"alpha_schedule": "linear"}),
        ({"method": "autosparse", "alpha_init": 0.5, "threshold_init": -5.0}, {"threshold_init": -5.0}),
    ],
)
def test_version_1_of_autosparse(tmp_path, values, expected):
    assert read(tmp_path, **values) == AutoSparseConfig(alpha_init=0.5, **expected)


@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        ("continuous", {"init": 0.1, "temperature": 9.0}, ContinuousConfig(score_init=0.1, final_temperature=9.0)),
        ("dst", {"penalty": 1e-3}, DSTConfig(penalty=1e-3)),
        (
            "mest",
            {"every": 3, "soft": True, "gradient": 0.1, "mutation": 0.4},
            MESTConfig(
                target_sparsity=0.5, every=3, soft_memory_bound=True, gradient_weight=0.1, mutation_fraction=0.4
            ),
        ),
        ("nm", {"n": 1, "decay": 0.1}, NMConfig(n=1, pruned_decay=0.1)),
        ("scl", {"init": 0.5}, SCLConfig(score_init=0.5)),
        ("swat", {"activations": 0.3}, SWATConfig(target_sparsity=0.5, activation_sparsity=0.3)),
        ("topkast", {"power": 2.0}, TopKASTConfig(target_sparsity=0.5, power=2.0)),
        ("fixed_mask", {}, FixedMaskConfig()),  # it ignored first_last="modules"
    ],
)
def test_options_become_fields(tmp_path, method, options, expected):
    """In a file of version 1, and in a dict or recipe of that time."""
    values = {"target_sparsity": 0.5} if isinstance(expected, MESTConfig | SWATConfig | TopKASTConfig) else {}
    assert read(tmp_path, method=method, options=options, **values) == expected
    assert SparseConfig.from_dict({"method": method, "options": options} | values) == expected


def test_what_version_1_would_have_refused_is_refused(tmp_path):
    with pytest.raises(ValueError, match="STRConfig has no field 'alpha_init'"):
        read(tmp_path, method="str", alpha_init=0.5)


# ---- The registry ----


def test_each_configuration_has_its_sparsifier():
    assert config_class("rigl") is RigLConfig
    assert method_of(RigLConfig) is method_of(RigLConfig(target_sparsity=0.5))
    assert method_of(RigLConfig).__name__ == "RigL"


def test_a_dict_is_no_configuration():
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(TypeError, match="expected a configuration such as AutoSparseConfig.*SparseConfig.from_dict"):
        sparsify(model, {"method": "rigl"})
    assert type(model[0]) is nn.Linear


def test_a_configuration_without_a_sparsifier_is_refused():
    @dataclass(frozen=True, kw_only=True)
    class Lonely(SparseConfig):
        method: ClassVar[str] = "lonely"

    with pytest.raises(TypeError, match=r"Lonely has no sparsifier: decorate one with @register\(Lonely\)"):
        sparsify(nn.Sequential(nn.Linear(4, 4)), Lonely())


def test_a_name_is_registered_once():
    @dataclass(frozen=True, kw_only=True)
    class Second(SparseConfig):
        method: ClassVar[str] = "rigl"

    with pytest.raises(ValueError, match="method 'rigl' is already registered for .*RigLConfig.*: choose another name"):
        register(Second)(Sparsifier)
    assert config_class("rigl") is RigLConfig

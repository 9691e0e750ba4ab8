import json
import re

import pytest

from hf_autosparse import AutoSparseConfig
from hf_autosparse.config import CONFIG_NAME


def test_json_round_trip(tmp_path):
    config = AutoSparseConfig(
        alpha_schedule="exponential",
        alpha_zero_epoch=10,
        threshold_init={"sparsity": 0.6},
        dense_modules=["lm_head"],
        backward_sparsity=0.5,
    )
    assert AutoSparseConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    config.save_pretrained(tmp_path / "new")
    assert AutoSparseConfig.from_pretrained(tmp_path / "new") == config
    assert [p.name for p in (tmp_path / "new").iterdir()] == [CONFIG_NAME]


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("method", "nope", "'autosparse'"),
        ("alpha_init", 1.5, "[0, 1]"),
        ("alpha_init", float("nan"), "[0, 1]"),
        ("alpha_init", "0.5", "[0, 1]"),
        ("alpha_schedule", "cosin", "'cosine'"),
        ("alpha_beta", -1, "[0, inf)"),
        ("alpha_epochs", 0, "(0, inf) or None"),
        ("alpha_zero_epoch", -1, "[0, inf) or None"),
        ("alpha_update", "batch", "'epoch', 'step'"),
        ("backward_sparsity", 1.0, "[0, 1) or None"),
        ("threshold_init", {"sparsity": 1.0}, "[0, 1)"),
        ("threshold_init", {"density": 0.5}, '{"sparsity": x}'),
        ("threshold_init", {"sparsity": 0.995}, "max_layer_sparsity = 0.99"),
        ("threshold_init", float("inf"), "finite"),
        ("threshold_granularity", "row", "'layer', 'channel'"),
        ("threshold_lr", -0.1, "[0, inf) or None"),
        ("threshold_weight_decay", None, "[0, inf)"),
        ("clip_thresholds", 1, "True or False"),
        ("target_modules", "fc1", "list of module name patterns"),
        ("dense_modules", [""], "list of module name patterns"),
        ("first_last", "layers", "'modules', 'blocks', 'none'"),
        ("max_layer_sparsity", 1.0, "(0, 1)"),
    ],
)
def test_invalid_value_names_field_value_and_what_is_allowed(field, value, allowed):
    with pytest.raises(ValueError, match=re.escape(f"AutoSparseConfig.{field} = {value!r} is not allowed")) as error:
        AutoSparseConfig(**{field: value})
    assert allowed in str(error.value)


def test_unknown_field_suggests_a_near_one():
    with pytest.raises(ValueError, match="no field 'alpha_shedule': did you mean alpha_schedule"):
        AutoSparseConfig.from_dict({"alpha_shedule": "cosine"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "holds a list"),
        ("{}", "format_version None"),
        ('{"format_version": 99}', "format_version 99"),
        ('{"format_version": 1, "alpha_init": 3}', "alpha_init = 3"),
    ],
)
def test_bad_files(tmp_path, content, message):
    (tmp_path / CONFIG_NAME).write_text(content)
    with pytest.raises(ValueError, match=message):
        AutoSparseConfig.from_pretrained(tmp_path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=CONFIG_NAME):
        AutoSparseConfig.from_pretrained(tmp_path)

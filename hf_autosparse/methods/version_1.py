"""Format version 1 of a configuration: all methods' fields side by side, and a method's own settings in `options`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

# Every field that version 1 had beside `method` and `options`, with its default. A method ignored what it did not read.
DEFAULTS: dict[str, Any] = {
    "target_sparsity": None,
    "target_ramp": 0.75,
    "sparsity_distribution": "uniform",
    "alpha_init": None,
    "alpha_schedule": None,
    "alpha_beta": 1.0,
    "alpha_epochs": None,
    "alpha_zero_epoch": None,
    "alpha_update": "epoch",
    "backward_sparsity": None,
    "threshold_init": {"sparsity": 0.5},
    "threshold_granularity": "layer",
    "threshold_lr": None,
    "threshold_weight_decay": 0.0,
    "clip_thresholds": False,
    "target_modules": None,
    "dense_modules": [],
    "first_last": "modules",
    "max_layer_sparsity": 0.99,
    "compute": "dense",
}
OWN_DEFAULT = ("alpha_init", "alpha_schedule")  # None stood for the method's own default
RENAMED: dict[str, dict[str, str]] = {
    "continuous": {"init": "score_init", "temperature": "final_temperature"},
    "mest": {"gradient": "gradient_weight", "mutation": "mutation_fraction", "soft": "soft_memory_bound"},
    "nm": {"decay": "pruned_decay"},
    "scl": {"init": "score_init"},
    "swat": {"activations": "activation_sparsity"},
}


def to_version_2(values: Mapping[str, Any], fields: Collection[str]) -> dict[str, Any]:
    """The settings of version 1 under the names of version 2.

    Fields that the method lacks are left out where they hold their default; others stay, so that reading them fails.

    Args:
        values: `method`, `options` and any of DEFAULTS.
        fields: the names of the fields that the method's configuration has.

    Raises:
        ValueError: `options` is not a dict.
    """
    method: str = values["method"]
    options = values["options"]
    if not isinstance(options, Mapping):
        raise ValueError(
            f"options = {options!r} is not allowed: use a dict of settings, or better list them one by one"
        )
    renamed = RENAMED.get(method, {})
    kept: dict[str, Any] = {"method": method}
    for option, value in options.items():
        kept[renamed[option] if option in renamed else option] = value
    for name, value in values.items():
        if name in ("method", "options"):
            continue
        if name in DEFAULTS and value == DEFAULTS[name] and (name not in fields or name in OWN_DEFAULT):
            continue
        if name == "first_last" and method == "fixed_mask":  # which ignored it
            continue
        kept[name] = value
    return kept

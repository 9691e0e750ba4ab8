"""`AutoSparseConfig`: everything that describes a sparse run, as one dataclass that survives a JSON round trip."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .methods import available_methods
from .schedules import ALPHA_SCHEDULES

CONFIG_NAME = "autosparse_config.json"
FORMAT_VERSION = 1


@dataclass
class AutoSparseConfig:
    """How to sparsify a model and anneal its gradients. Sparsity is the fraction of zeros, in [0, 1], throughout.

    Args:
        method: name of a registered method, see `hf_autosparse.methods.available_methods`.
        alpha_init: alpha at the start, in [0, 1]: the share of the gradient that pruned weights receive.
            0 is STR (pruned weights get none), 1 the straight-through estimator.
        alpha_schedule: "fixed", "linear", "cosine" (eq. 2), "sigmoid" (3), "sigmoid-cosine" (4), "exponential" (9).
        alpha_beta: decay rate per epoch of the exponential schedule.
        alpha_epochs: length of the schedule in epochs; None for the whole training. The exponential one has none.
        alpha_zero_epoch: alpha is cut to 0 from this epoch (counted from 0) on; None for never.
        alpha_update: "epoch": annealed at the start of every epoch and constant inside it (the paper); "step".
        backward_sparsity: eq. 8: the weight gradient is restricted to the `1 - backward_sparsity` largest weights and
            the active ones; None for no restriction.
        threshold_init: a number s0 (`T = sigmoid(s0)`), or `{"sparsity": x}`: each layer's s is set so that a fraction
            x of its own initial weights is pruned. A fixed s0 suits only the initialisation that it was tuned for.
        threshold_granularity: "layer" (the paper) or "channel" (one threshold per output channel).
        threshold_lr: learning rate of the thresholds; None for that of the weights. It follows the same scheduler.
        threshold_weight_decay: weight decay of s. s is negative, so decay pulls `T` towards 1/2 and raises sparsity.
        clip_thresholds: whether thresholds count in, and are scaled by, gradient clipping.
        target_modules: patterns of the layers to sparsify; None for every Linear, Conv2d and Conv1D.
        dense_modules: patterns of the layers to leave dense. A pattern is a module's full name, the end of one
            ("fc1", "layers.0"), or a glob over the full name ("model.decoder.*"); it covers everything below it.
        first_last: "modules": the first and the last layer stay dense; "blocks": also all of the first and the last
            block (the other reading of the paper's "first and last layers"); "none". "fixed_mask" has no such layers.
        max_layer_sparsity: a layer that passes this is reported by name and held there.

    Raises:
        ValueError: a field's value is not allowed; the message names the field, the value and what is.
    """

    method: str = "autosparse"
    alpha_init: float = 0.75
    alpha_schedule: str = "sigmoid-cosine"
    alpha_beta: float = 1.0
    alpha_epochs: float | None = None
    alpha_zero_epoch: float | None = None
    alpha_update: str = "epoch"
    backward_sparsity: float | None = None
    threshold_init: float | dict[str, float] = field(default_factory=lambda: {"sparsity": 0.5})
    threshold_granularity: str = "layer"
    threshold_lr: float | None = None
    threshold_weight_decay: float = 0.0
    clip_thresholds: bool = False
    target_modules: list[str] | None = None
    dense_modules: list[str] = field(default_factory=list)
    first_last: str = "modules"
    max_layer_sparsity: float = 0.99

    def __post_init__(self) -> None:
        self._choice("method", available_methods())
        self._number("alpha_init", 0, 1)
        self._choice("alpha_schedule", ALPHA_SCHEDULES)
        self._number("alpha_beta", 0, math.inf)
        self._number("alpha_epochs", 0, math.inf, optional=True, low_open=True)
        self._number("alpha_zero_epoch", 0, math.inf, optional=True)
        self._choice("alpha_update", ["epoch", "step"])
        self._number("backward_sparsity", 0, 1, optional=True, high_open=True)
        self._threshold_init()
        self._choice("threshold_granularity", ["layer", "channel"])
        self._number("threshold_lr", 0, math.inf, optional=True)
        self._number("threshold_weight_decay", 0, math.inf)
        self._boolean("clip_thresholds")
        self._patterns("target_modules", optional=True)
        self._patterns("dense_modules")
        self._choice("first_last", ["modules", "blocks", "none"])
        self._number("max_layer_sparsity", 0, 1, low_open=True, high_open=True)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> AutoSparseConfig:
        """Inverse of `to_dict`. Raises ValueError for a key that is no field."""
        names = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            if key not in names:
                near = difflib.get_close_matches(str(key), names, n=3, cutoff=0.5)
                hint = f"did you mean {' or '.join(near)}?" if near else f"fields are {', '.join(names)}"
                raise ValueError(f"AutoSparseConfig has no field {key!r}: {hint}")
        return cls(**values)

    def save_pretrained(self, directory: str | os.PathLike) -> None:
        """Write `autosparse_config.json` into `directory` (made if absent), atomically."""
        path = Path(directory) / CONFIG_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}.tmp")
        draft.write_text(json.dumps({"format_version": FORMAT_VERSION, **self.to_dict()}, indent=2) + "\n")
        os.replace(draft, path)

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike) -> AutoSparseConfig:
        """Read `autosparse_config.json` from a local directory.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is no JSON object, of an unknown version, or holds an unknown or invalid field.
        """
        path = Path(directory) / CONFIG_NAME
        if not path.is_file():
            raise FileNotFoundError(f"no {CONFIG_NAME} in {directory}: was it written by save_pretrained?")
        try:
            values = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"{path} holds a {type(values).__name__}, expected a JSON object")
        version = values.pop("format_version", None)
        if version != FORMAT_VERSION:
            raise ValueError(
                f"{path} has format_version {version!r}, this release reads {FORMAT_VERSION}: upgrade hf-autosparse"
            )
        return cls.from_dict(values)

    def _invalid(self, name: str, allowed: str) -> ValueError:
        return ValueError(f"AutoSparseConfig.{name} = {getattr(self, name)!r} is not allowed: use {allowed}")

    def _choice(self, name: str, allowed) -> None:
        if getattr(self, name) not in list(allowed):
            raise self._invalid(name, "one of " + ", ".join(repr(a) for a in allowed))

    def _number(
        self,
        name: str,
        low: float,
        high: float,
        *,
        optional: bool = False,
        low_open: bool = False,
        high_open: bool = False,
    ) -> None:
        value = getattr(self, name)
        if value is None and optional:
            return
        inside = _is_number(value) and low <= value <= high
        if not inside or (low_open and value == low) or (high_open and value == high):
            interval = f"{'(' if low_open else '['}{low}, {high}{')' if high_open or high == math.inf else ']'}"
            raise self._invalid(name, f"a number in {interval}" + (" or None" if optional else ""))

    def _boolean(self, name: str) -> None:
        if not isinstance(getattr(self, name), bool):
            raise self._invalid(name, "True or False")

    def _patterns(self, name: str, *, optional: bool = False) -> None:
        value = getattr(self, name)
        if value is None and optional:
            return
        if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) and v for v in value):
            raise self._invalid(name, 'a list of module name patterns such as ["fc1", "decoder.layers.*"]')
        setattr(self, name, list(value))

    def _threshold_init(self) -> None:
        value = self.threshold_init
        if _is_number(value):
            return
        wanted = value.get("sparsity") if isinstance(value, dict) and set(value) == {"sparsity"} else None
        if not _is_number(wanted) or not 0 <= wanted < 1:
            raise self._invalid("threshold_init", 'a finite number s0, or {"sparsity": x} with x in [0, 1)')
        if wanted > self.max_layer_sparsity:
            raise self._invalid("threshold_init", f"a sparsity up to max_layer_sparsity = {self.max_layer_sparsity}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

"""`AutoSparseConfig`: everything that describes a sparse run, as one dataclass that survives a JSON round trip."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .methods import METHOD_FIELDS, Options, Sparsifier, available_methods, get_method
from .methods.distributions import SPARSITY_DISTRIBUTIONS
from .methods.schedules import ALPHA_SCHEDULES
from .utils.validation import check_boolean, check_choice, check_number, is_number, reject

CONFIG_NAME = "autosparse_config.json"
FORMAT_VERSION = 1


@dataclass
class AutoSparseConfig:
    """How to sparsify a model and anneal its gradients. Sparsity is the fraction of zeros, in [0, 1], throughout.

    Args:
        method: name of a registered method, see `hf_autosparse.methods.available_methods`.
        options: the method's own options, a dict or its `Options`; `hf_autosparse.methods` documents them.
        target_sparsity: the sparsity of all sparse layers together. Fixed-budget methods (rigl, gmp, ...) need it.
            Those that learn thresholds or masks (autosparse, str, dst, ...) find their own without it; with it the
            trainers end at it, and the method finds how the layers share it.
        target_ramp: of those that learn: fraction of the training from which on the target is held, in [0, 1]. Before,
            the range of sparsities that are allowed narrows to the target from anything.
        sparsity_distribution: how that budget is spread over layers: "uniform", or "erk" (small layers denser).
        alpha_init: alpha at the start, in [0, 1]: the share of the gradient that pruned weights receive.
            0 is STR (pruned weights get none), 1 the straight-through estimator. None for the method's own value.
        alpha_schedule: "fixed", "linear", "cosine" (eq. 2), "sigmoid" (3), "sigmoid-cosine" (4), "exponential" (9);
            None for the method's own.
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
        compute: the products of training on the CPU. "dense"; "sparse": Linear and Conv1D layers with at least 30 %
            zeros skip them, and compute the weight gradient only where the method needs it; "auto": where that was
            measured faster on this machine (docs/speed.md). Results differ by rounding.

    Raises:
        ValueError: a field's value is not allowed, or the method would not read a field that was set; the message
            names the field, the value and what is allowed.
    """

    method: str = "autosparse"
    options: Options | dict[str, Any] = field(default_factory=dict)
    target_sparsity: float | None = None
    target_ramp: float = 0.75
    sparsity_distribution: str = "uniform"
    alpha_init: float | None = None
    alpha_schedule: str | None = None
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
    compute: str = "dense"

    def __post_init__(self) -> None:
        self._check(check_choice, "method", available_methods())
        self._check(check_number, "target_sparsity", 0, 1, optional=True, high_open=True)
        self._check(check_number, "target_ramp", 0, 1)
        self._check(check_choice, "sparsity_distribution", SPARSITY_DISTRIBUTIONS)
        self._check(check_number, "alpha_init", 0, 1, optional=True)
        if self.alpha_schedule is not None:
            self._check(check_choice, "alpha_schedule", ALPHA_SCHEDULES)
        self._check(check_number, "alpha_beta", 0, math.inf)
        self._check(check_number, "alpha_epochs", 0, math.inf, optional=True, low_open=True)
        self._check(check_number, "alpha_zero_epoch", 0, math.inf, optional=True)
        self._check(check_choice, "alpha_update", ["epoch", "step"])
        self._check(check_number, "backward_sparsity", 0, 1, optional=True, high_open=True)
        self._check_threshold_init()
        self._check(check_choice, "threshold_granularity", ["layer", "channel"])
        self._check(check_number, "threshold_lr", 0, math.inf, optional=True)
        self._check(check_number, "threshold_weight_decay", 0, math.inf)
        self._check(check_boolean, "clip_thresholds")
        self._check_patterns("target_modules", optional=True)
        self._check_patterns("dense_modules")
        self._check(check_choice, "first_last", ["modules", "blocks", "none"])
        self._check(check_number, "max_layer_sparsity", 0, 1, low_open=True, high_open=True)
        self._check(check_choice, "compute", ["dense", "sparse", "auto"])
        self._apply_method()
        self._check_target()

    @property
    def learns_target(self) -> bool:
        """Whether there is a target for a method that would find its own sparsity."""
        return self.target_sparsity is not None and "target_ramp" in get_method(self.method).reads

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> AutoSparseConfig:
        """Inverse of `to_dict`. Raises ValueError for a key that is no field."""
        names = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            if key not in names:
                raise ValueError(f"AutoSparseConfig has no field {key!r}: {_hint(key, names)}")
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

    def _check(self, check: Callable[..., None], name: str, *allowed: Any, **bounds: Any) -> None:
        check(f"AutoSparseConfig.{name}", getattr(self, name), *allowed, **bounds)

    def _apply_method(self) -> None:
        """Turn `options` into the method's own, fill in its alpha, and refuse fields that it would not read."""
        method = get_method(self.method)
        self.options = _options(method, self.options)
        unread = sorted(METHOD_FIELDS - method.reads)
        for name in unread:
            if getattr(self, name) != _default(name):
                readers = [other for other in available_methods() if name in get_method(other).reads]
                raise ValueError(
                    f"AutoSparseConfig.{name} = {getattr(self, name)!r} has no effect on method {self.method!r}: leave"
                    f" it out, or use one of {', '.join(readers)}"
                )
        if self.compute != "dense" and method.deployed is not Sparsifier.deployed:
            raise ValueError(
                f"AutoSparseConfig.compute = {self.compute!r} has no effect on method {self.method!r}, which trains"
                " with a soft mask and so without zeros: leave it out"
            )
        if "sparsity_distribution" in method.reads and self.target_sparsity is None:
            raise ValueError(
                f"AutoSparseConfig.target_sparsity = None, but method {self.method!r} keeps a fixed budget: give the"
                " wanted fraction of zeros, such as 0.8"
            )
        if "alpha_init" in method.reads:
            init, schedule = method.default_alpha
            self.alpha_init = init if self.alpha_init is None else self.alpha_init
            self.alpha_schedule = schedule if self.alpha_schedule is None else self.alpha_schedule

    def _check_target(self) -> None:
        if self.target_sparsity is None:
            if self.target_ramp != _default("target_ramp"):
                raise ValueError(
                    f"AutoSparseConfig.target_ramp = {self.target_ramp!r} has no effect without target_sparsity: give"
                    " the wanted fraction of zeros, such as 0.8, or leave it out"
                )
        elif "max_layer_sparsity" in get_method(self.method).reads and self.target_sparsity > self.max_layer_sparsity:
            raise reject(
                "AutoSparseConfig.target_sparsity",
                self.target_sparsity,
                f"a sparsity up to max_layer_sparsity = {self.max_layer_sparsity}",
            )

    def _check_patterns(self, name: str, *, optional: bool = False) -> None:
        value = getattr(self, name)
        if value is None and optional:
            return
        if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) and v for v in value):
            raise reject(
                f"AutoSparseConfig.{name}", value, 'a list of module name patterns such as ["fc1", "decoder.layers.*"]'
            )
        setattr(self, name, list(value))

    def _check_threshold_init(self) -> None:
        value, label = self.threshold_init, "AutoSparseConfig.threshold_init"
        if is_number(value):
            return
        wanted = value.get("sparsity") if isinstance(value, dict) and set(value) == {"sparsity"} else None
        if not is_number(wanted) or not 0 <= wanted < 1:
            raise reject(label, value, 'a finite number s0, or {"sparsity": x} with x in [0, 1)')
        if wanted > self.max_layer_sparsity:
            raise reject(label, value, f"a sparsity up to max_layer_sparsity = {self.max_layer_sparsity}")


def _options(method: type[Sparsifier], values: Options | dict[str, Any]) -> Options:
    if isinstance(values, method.Options):
        return values
    if not isinstance(values, dict):
        raise ValueError(f"AutoSparseConfig.options = {values!r}: expected a dict of options of {method.name!r}")
    names = [f.name for f in dataclasses.fields(method.Options)]
    for key in values:
        if key not in names:
            raise ValueError(f"method {method.name!r} has no option {key!r}: {_hint(key, names)}")
    return method.Options(**values)


def _hint(key: Any, names: list[str]) -> str:
    near = difflib.get_close_matches(str(key), names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(names) or 'none'}"


def _default(name: str) -> Any:
    spec = next(f for f in dataclasses.fields(AutoSparseConfig) if f.name == name)
    return spec.default if spec.default is not dataclasses.MISSING else spec.default_factory()

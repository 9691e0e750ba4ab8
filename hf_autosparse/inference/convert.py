"""`to_inference`: make a trained sparse model fast, each layer as this machine runs it fastest."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from ..kernels import Backend, get_backend, registered_backends
from ..kernels.autotune import EVERY_NUMBER, MARGIN, SPARSITIES, Ranges, Speedups, Store, ranges
from ..kernels.backends import RESERVED
from ..layers.kinds import dense_kind_of, matrix_of
from ..layers.sparsify import finalize, sparse_layers
from ..utils.tables import as_text, table
from .layers import InferenceLayer, swap_in, swap_out
from .measure import layer_speedups

_RECORD = "_autosparse_inference"


@dataclass(frozen=True)
class BackendRow:
    """One layer.

    Attributes:
        sparsity: fraction of zeros.
        backend: "dense" or its sparse form.
        bytes: memory of that form.
        error: of a form that rounds the weight, on random activations, relative to the product; else 0.
    """

    name: str
    shape: tuple[int, ...]
    sparsity: float
    backend: str
    reason: str
    bytes: int = 0
    error: float = 0.0


@dataclass(frozen=True)
class InferenceReport:
    """What `to_inference` picked for each layer, and why. `print(report)` shows a table."""

    kernels: str
    rows: list[BackendRow]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        sparse = [row for row in self.rows if row.backend != "dense"]
        beside = f"{sum(row.bytes for row in sparse) / 2**20:.1f} MiB beside the dense weights"
        title = f"{len(sparse)} of {len(self.rows)} layers sparse, {beside}"
        rows: list[tuple[str, ...]] = [
            (row.name, row.reason, row.backend, " x ".join(map(str, row.shape)), f"{row.sparsity:.1%}")
            for row in self.rows
        ]
        headers = ["layer", "why", "backend", "shape", "sparsity"]
        if any(row.error for row in sparse):
            headers.append("error")
            rows = [(*cells, f"{row.error:.2%}") for cells, row in zip(rows, self.rows, strict=True)]
        return as_text([table(title, headers, rows, words=3), f"kernels: {self.kernels}"])


def to_inference(
    model: nn.Module,
    backend: str = "auto",
    overrides: Mapping[str, str] | None = None,
    remeasure: bool = False,
    dtype: str | None = None,
) -> nn.Module:
    """Prepare a model for fast inference where it is, in place, and return it in eval mode.

    Every Linear, Conv1D and, on the CPU, Conv2d without groups may skip the zeros of its weight, if they are enough.
    Outputs differ from the dense model's by rounding only. A model that is still sparse is finalized first: copy it
    before if training goes on.

    The model keeps its classes' names for `state_dict`, `save_pretrained`, pickling and copying; the sparse forms lie
    beside the dense weights and are derived again after loading. Call it under `torch.inference_mode()` or
    `torch.no_grad()`, as `generate` does by itself: with gradients it computes densely.

    Args:
        model: finalized, loaded, pruned elsewhere, or from `sparsify`.
        backend: "auto": for each layer and number of tokens the faster product, as measured on this machine the first
            time (a few seconds, kept in the user's cache). The name of a backend, such as "sparse": its sparse product
            for every layer with at least 30 % zeros. docs/speed.md lists the backends, and what each is good for;
            "auto" considers all whose results differ from the dense ones by rounding only. "dense": undo.
        overrides: pattern over full layer names (glob) -> the name of a backend or "dense", whatever `backend` says.
        remeasure: measure again instead of reading the cache.
        dtype: "int8" rounds the non-zeros of every weight, and the activations of each token, to 8 bits: the backend
            "bitmask_int8" by another name. The report has the error of each layer.

    Raises:
        ValueError: an unknown backend or dtype; a dtype beside a backend; a pattern that matches no layer that could be
            sparse; a backend that is asked for by name, but computes on another device, or cannot take a weight with
            enough zeros (such as one that is not 2:4).
        RuntimeError: a backend is asked for that this machine cannot use; the message says why.
    """
    overrides = dict(overrides or {})
    _check(backend, overrides)
    if dtype is not None:
        backend = _backend_of(dtype, backend)
    if sparse_layers(model):
        finalize(model)
    for module in list(model.modules()):
        if isinstance(module, InferenceLayer):
            swap_out(module)
    layers = {name: module for name, module in model.named_modules() if dense_kind_of(module) is not None}
    for pattern in overrides:
        if not fnmatch.filter(layers, pattern):
            raise ValueError(f"overrides: {pattern!r} matches no layer; there are {list(layers)[:10]}")
    wanted = {
        name: next((choice for pattern, choice in overrides.items() if fnmatch.fnmatchcase(name, pattern)), backend)
        for name in layers
    }
    _check_devices(layers, wanted)
    for choice in sorted(set(wanted.values()) - set(RESERVED)):
        asked_for = get_backend(choice)
        if not asked_for.is_available():
            raise RuntimeError(
                f"backend {choice!r} needs {asked_for.requirement}, but this machine takes {asked_for.status()}"
            )
    picker = _Picker(model, remeasure)
    picks = {name: picker.pick(name, module, wanted[name], name in overrides) for name, module in layers.items()}
    picker.save()
    rows = []
    for name, module in layers.items():  # nothing is changed before everything is known to work
        pick = picks[name]
        shape, size, error = tuple(module.weight.shape), 0, 0.0
        if pick.sparse_for:
            layer = swap_in(module, pick.sparse_for, pick.backend, exact=pick.measured)
            size, error = layer.matrix_bytes, layer.matrix_error()
        used = pick.backend if pick.sparse_for else "dense"
        rows.append(BackendRow(name, shape, pick.zeros, used, pick.reason, size, error))
    asked = backend == "auto" or set(wanted.values()) != {"dense"}
    status = _status(layers) if asked else "not asked for"
    setattr(model, _RECORD, InferenceReport(status, rows))
    return model.eval()


def inference_report(model: nn.Module) -> InferenceReport:
    """What `to_inference` picked for this model.

    Raises:
        ValueError: `to_inference` was not called on it.
    """
    report: InferenceReport | None = getattr(model, _RECORD, None)
    if report is None:
        raise ValueError(f"{type(model).__name__} was not prepared for inference: call to_inference(model) first")
    return report


def _backend_of(dtype: str, backend: str) -> str:
    """The backend that holds values of this dtype."""
    if dtype != "int8":
        raise ValueError(f"dtype = {dtype!r}: allowed are 'int8', and None to keep the values of the weights")
    if backend != "auto":
        raise ValueError(f"dtype = {dtype!r} beside backend = {backend!r}: leave one of them out, both choose the form")
    return "bitmask_int8"


def _check(backend: str, overrides: dict[str, str]) -> None:
    names = [form.name for form in registered_backends()]
    if backend not in (*RESERVED, *names):
        raise ValueError(f"backend = {backend!r}: allowed are {', '.join(map(repr, (*RESERVED, *names)))}")
    for pattern, choice in overrides.items():
        if choice not in ("dense", *names):
            forms = (f"{form.name!r} on {form.device}" for form in registered_backends())
            raise ValueError(f"overrides[{pattern!r}] = {choice!r}: allowed are 'dense', {', '.join(forms)}")


def _check_devices(layers: Mapping[str, nn.Module], wanted: Mapping[str, str]) -> None:
    """Refuse backends that were asked for by name for a layer on a device where they do not compute."""
    for name, layer in layers.items():
        weight = layer._parameters.get("weight")
        if wanted[name] in RESERVED or weight is None:
            continue
        form = get_backend(wanted[name])
        if weight.device.type != form.device:
            others = ", ".join(repr(other.name) for other in registered_backends(weight.device.type))
            raise ValueError(
                f"backend {form.name!r} computes on {form.device!r}, but {name}.weight is on {weight.device}: call"
                f" model.to({form.device!r}) first, or take one of 'dense'{others and ', '}{others}"
            )


def _status(layers: Mapping[str, nn.Module]) -> str:
    """What the backends of the layers' devices compute with."""
    devices = dict.fromkeys(matrix_of(layer).device.type for layer in layers.values())
    found = dict.fromkeys(form.status() for device in devices for form in registered_backends(device))
    return "; ".join(found) or f"none for {', '.join(devices) or 'a model without layers'}"


@dataclass(frozen=True)
class _Pick:
    """`zeros`: their fraction. `sparse_for`: numbers of tokens to go sparse for, in the form that `backend` names.

    `measured`: it was not asked for, but found to be faster.
    """

    zeros: float
    sparse_for: Ranges
    reason: str
    backend: str = "dense"
    measured: bool = False


class _Picker:
    """Decides layer by layer."""

    def __init__(self, model: nn.Module, remeasure: bool):
        self._remeasure = remeasure
        layers = [module for module in model.modules() if dense_kind_of(module) is not None]
        self._model_bytes = sum({id(layer.weight): matrix_of(layer).nbytes for layer in layers}.values())
        self._stores: dict[tuple[torch.device, str], Store] = {}
        self._bypassed = {
            id(child)
            for module in model.modules()
            if isinstance(module, nn.TransformerEncoderLayer)
            for child in (module.linear1, module.linear2)
        }

    def pick(self, name: str, layer: nn.Module, wanted: str, named: bool) -> _Pick:
        zeros = _zeros(layer)
        forms = self._forms(layer, wanted)
        if isinstance(forms, str):
            return _Pick(zeros, (), forms)
        why = "overrides" if wanted != "auto" and named else "asked for"
        if wanted == "dense":
            return _Pick(zeros, (), why)
        if zeros < SPARSITIES[0] and why != "overrides":
            return _Pick(zeros, (), f"fewer than {SPARSITIES[0]:.0%} zeros")
        refusals = {form.name: form.refusal(matrix_of(layer).detach()) for form in forms}
        if wanted != "auto":
            if refusals[wanted] is not None:
                raise ValueError(
                    f"backend {wanted!r} cannot take {name}.weight: {refusals[wanted]}; leave it dense with"
                    f" overrides={{{name!r}: 'dense'}}, or take backend='auto'"
                )
            return _Pick(zeros, EVERY_NUMBER, why, wanted)
        usable = [form for form in forms if refusals[form.name] is None and form.is_available()]
        if not usable:
            requirements = dict.fromkeys(form.requirement for form in forms if not form.is_available())
            refused = dict.fromkeys(filter(None, refusals.values()))
            lacking = f"this machine lacks {' or '.join(requirements)}" if requirements else None
            return _Pick(zeros, (), lacking or "; ".join(refused))
        speedups = {form.name: self._speedups(layer, zeros, form) for form in usable}
        best = max(speedups, key=lambda form: sum(math.log(max(1.0, ratio)) for ratio in speedups[form].values()))
        return _Pick(zeros, ranges(speedups[best]), _reason(layer, speedups[best]), best, measured=True)

    def save(self) -> None:
        """Keep what was measured."""
        for store in self._stores.values():
            store.save()

    def _speedups(self, layer: nn.Module, zeros: float, form: Backend) -> Speedups:
        key = matrix_of(layer).device, form.version()
        if key not in self._stores:
            self._stores[key] = Store(*key, self._remeasure)
        return layer_speedups(self._stores[key], layer, zeros, self._model_bytes, form)

    def _forms(self, layer: nn.Module, wanted: str) -> list[Backend] | str:
        """The sparse forms that a layer may take, or why it can take none."""
        weight = layer._parameters.get("weight")
        if weight is None:
            return "its weight is computed by another module (weight norm, pruning)"
        forms = [form for form in registered_backends(weight.device.type) if wanted in (*RESERVED, form.name)]
        if not forms:
            return f"on {weight.device}, where no backend computes"
        if not any(form.applies(weight) for form in forms):
            dtypes = dict.fromkeys(_name(dtype) for form in forms for dtype in form.dtypes)
            return f"{_name(weight.dtype)}: the kernels compute in {' and '.join(dtypes)}"
        if weight.numel() == 0:
            return "empty"
        if id(layer) in self._bypassed:
            return "nn.TransformerEncoderLayer bypasses the layer in its fast path"
        forms = [form for form in forms if form.applies(weight)]
        if isinstance(layer, nn.Conv2d):
            if layer.groups > 1:
                return "a convolution with groups"
            forms = [form for form in forms if form.convolves]
            if not forms:
                return f"a convolution, for which {weight.device.type} has no backend"
        if wanted == "auto":
            forms = [form for form in forms if form.exact(weight.detach())]
        return forms or "every backend rounds its values: ask for one by name"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _zeros(layer: nn.Module) -> float:
    weight = matrix_of(layer)
    return 0.0 if weight.is_meta or weight.numel() == 0 else 1 - int(weight.count_nonzero()) / weight.numel()


def _reason(layer: nn.Module, speedups: Speedups) -> str:
    unit = "pixels" if isinstance(layer, nn.Conv2d) else "tokens"
    times = ", ".join(f"{count:,}: {ratio:.1f}x" for count, ratio in speedups.items())
    if all(ratio < MARGIN for ratio in speedups.values()):
        return f"not measured faster ({unit} {times})"
    dense = [f"{count:,}" for count, ratio in speedups.items() if ratio < MARGIN]
    return f"measured ({unit} {times})" + (f"; dense for {', '.join(dense)}" if dense else "")

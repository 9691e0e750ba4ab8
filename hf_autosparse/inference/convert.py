"""`to_inference`: make a trained sparse model fast, each layer as this machine runs it fastest."""

from __future__ import annotations

import fnmatch
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from .. import kernels
from ..kernels.autotune import EVERY_NUMBER, MARGIN, SPARSITIES, Ranges, Speedups, ranges
from ..layers.kinds import dense_kind_of, matrix_of
from ..layers.sparsify import finalize, sparse_layers
from ..utils.tables import as_text, table
from .layers import InferenceConv2d, InferenceLayer, swap_in, swap_out
from .measure import Crossover

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "sparse", "dense", *(name for name in kernels.BACKENDS if name != "sparse"))
_RECORD = "_autosparse_inference"


@dataclass(frozen=True)
class BackendRow:
    """One layer. `sparsity`: fraction of zeros. `backend`: "dense" or its sparse form. `bytes`: memory of that form."""

    name: str
    shape: tuple[int, ...]
    sparsity: float
    backend: str
    reason: str
    bytes: int = 0


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
        rows = [
            (row.name, row.reason, row.backend, " x ".join(map(str, row.shape)), f"{row.sparsity:.1%}")
            for row in self.rows
        ]
        headers = ["layer", "why", "backend", "shape", "sparsity"]
        return as_text([table(title, headers, rows, words=3), f"kernels: {self.kernels}"])


def to_inference(
    model: nn.Module,
    backend: str = "auto",
    overrides: Mapping[str, str] | None = None,
    remeasure: bool = False,
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
            time (a few seconds, kept in the user's cache). "sparse": the sparse product for every layer with at least
            30 % zeros, on the CPU. "sparse_bfloat16": the same with the non-zeros rounded to bfloat16, 3 bytes each
            instead of 5, for large models and few tokens; "auto" considers it where that changes no weight, as in a
            model trained in bfloat16. "bitmask": for up to 16 tokens on a GPU. "semi_structured": on a GPU, the 2:4
            product. "dense": undo.
        overrides: pattern over full layer names (glob) -> one of these but "auto", whatever `backend` says.
        remeasure: measure again instead of reading the cache.

    Raises:
        ValueError: an unknown backend, a pattern that matches no layer that could be sparse, "bitmask" or
            "semi_structured" for a layer on the CPU, "semi_structured" for a weight with enough zeros that is not 2:4.
        RuntimeError: a backend is asked for whose kernels are not available; the message says why.
    """
    overrides = dict(overrides or {})
    _check(backend, overrides)
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
    for choice in sorted(set(wanted.values()) & set(kernels.BACKENDS)):
        form = kernels.BACKENDS[choice]
        if not form.is_available():
            raise RuntimeError(f"backend {choice!r} needs {form.needs}, but this machine takes {form.status()}")
    picker = _Picker(model, remeasure)
    picks = {name: picker.pick(name, module, wanted[name], name in overrides) for name, module in layers.items()}
    picker.save()
    rows = []
    for name, module in layers.items():  # nothing is changed before everything is known to work
        pick = picks[name]
        shape, size = tuple(module.weight.shape), 0
        if pick.sparse_for:
            swap_in(module, pick.sparse_for, pick.backend, exact=pick.measured)
            size = module.matrix_bytes
        used = pick.backend if pick.sparse_for else "dense"
        rows.append(BackendRow(name, shape, pick.zeros, used, pick.reason, size))
    on_gpu = any(kernels.gpu.takes(module.weight) for module in layers.values())
    asked = backend == "auto" or set(wanted.values()) != {"dense"}
    status = (kernels.gpu if on_gpu else kernels).status() if asked else "not asked for"
    setattr(model, _RECORD, InferenceReport(status, rows))
    return model.eval()


def inference_report(model: nn.Module) -> InferenceReport:
    """What `to_inference` picked for this model.

    Raises:
        ValueError: `to_inference` was not called on it.
    """
    report = getattr(model, _RECORD, None)
    if report is None:
        raise ValueError(f"{type(model).__name__} was not prepared for inference: call to_inference(model) first")
    return report


def _check(backend: str, overrides: dict[str, str]) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"backend = {backend!r}: allowed are {', '.join(map(repr, BACKENDS))}")
    for pattern, choice in overrides.items():
        if choice == "auto" or choice not in BACKENDS:
            raise ValueError(
                f"overrides[{pattern!r}] = {choice!r}: allowed are 'sparse', 'sparse_bfloat16' and 'dense', on a GPU"
                " 'bitmask', 'semi_structured' and 'dense'"
            )


def _check_devices(layers: Mapping[str, nn.Module], wanted: Mapping[str, str]) -> None:
    for name, layer in layers.items():
        form = kernels.BACKENDS.get(wanted[name])
        if form is not None and form.device != "cpu" and layer.weight.device.type != form.device:
            raise ValueError(
                f"backend {form.name!r} is for a GPU, but {name}.weight is on {layer.weight.device}: call"
                " model.to('cuda') first, or take backend='sparse' on the CPU"
            )


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
        weights = {id(m.weight): m.weight.nbytes for m in model.modules() if dense_kind_of(m) is not None}
        self._model_bytes = sum(weights.values())
        self._crossovers: dict[torch.device, Crossover] = {}
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
            return _Pick(zeros, (), f"no {forms[0].needs.removeprefix('the ')} on this machine")
        speedups = {form.name: self._speedups(layer, zeros, form.name) for form in usable}
        best = max(speedups, key=lambda form: sum(math.log(max(1.0, ratio)) for ratio in speedups[form].values()))
        return _Pick(zeros, ranges(speedups[best]), _reason(layer, speedups[best]), best, measured=True)

    def save(self) -> None:
        for crossover in self._crossovers.values():
            crossover.save()

    def _speedups(self, layer: nn.Module, zeros: float, form: str) -> Speedups:
        device = layer.weight.device
        if device not in self._crossovers:
            self._crossovers[device] = Crossover(self._remeasure, device)
        return self._crossovers[device].speedups(layer, zeros, self._model_bytes, form)

    def _forms(self, layer: nn.Module, wanted: str) -> list[kernels.Backend] | str:
        """The sparse forms that a layer may take, or why there is none."""
        weight = layer._parameters.get("weight")
        if weight is None:
            return "its weight is computed by another module (weight norm, pruning)"
        forms = [form for form in kernels.BACKENDS.values() if wanted in ("auto", "dense", form.name)]
        forms = [form for form in forms if form.device == weight.device.type]
        if not forms:
            return f"on {weight.device}: the kernels are for the CPU"
        if not any(form.applies(weight) for form in forms):
            dtypes = " and ".join(map(_name, forms[0].dtypes))
            return f"{_name(weight.dtype)}: the kernels compute in {dtypes}"
        if weight.numel() == 0:
            return "empty"
        if id(layer) in self._bypassed:
            return "nn.TransformerEncoderLayer bypasses the layer in its fast path"
        if isinstance(layer, nn.Conv2d):
            if layer.groups > 1:
                return "a convolution with groups"
            if not any(form.convolves for form in forms):
                return "a convolution: on a GPU it stays dense"
        convolves = isinstance(layer, nn.Conv2d)
        forms = [form for form in forms if form.applies(weight) and (form.convolves or not convolves)]
        return [form for form in forms if wanted != "auto" or form.exact(weight.detach())]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _zeros(layer: nn.Module) -> float:
    weight = layer.weight
    return 0.0 if weight.is_meta or weight.numel() == 0 else 1 - int(weight.count_nonzero()) / weight.numel()


def _reason(layer: nn.Module, speedups: Speedups) -> str:
    unit = "pixels" if isinstance(layer, (nn.Conv2d, InferenceConv2d)) else "tokens"
    times = ", ".join(f"{count:,}: {ratio:.1f}x" for count, ratio in speedups.items())
    if all(ratio < MARGIN for ratio in speedups.values()):
        return f"not measured faster ({unit} {times})"
    dense = [f"{count:,}" for count, ratio in speedups.items() if ratio < MARGIN]
    return f"measured ({unit} {times})" + (f"; dense for {', '.join(dense)}" if dense else "")

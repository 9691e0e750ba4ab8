"""`to_inference`: make a trained sparse model fast on the CPU, each layer as this machine runs it fastest."""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from . import kernels
from .crossover import MARGIN, SPARSITIES, Crossover, Speedups, ranges
from .inference_layers import EVERY_NUMBER, InferenceConv2d, InferenceLayer, Ranges, inference_class, swap_in, swap_out
from .sparsify import finalize, sparse_layers
from .tables import as_text, table

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "sparse", "dense")
_RECORD = "_autosparse_inference"


@dataclass(frozen=True)
class BackendRow:
    """One layer. `sparsity`: fraction of zeros. `backend`: "sparse" or "dense". `bytes`: memory of its sparse form."""

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
        sparse = [row for row in self.rows if row.backend == "sparse"]
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
    """Prepare a model for fast inference on the CPU, in place, and return it in eval mode.

    Every Linear, Conv1D and 1x1 Conv2d with enough zeros in its weight may skip them. Outputs differ from the dense
    model's by rounding only. A model that is still sparse is finalized first: copy it before if training goes on.

    The model keeps its classes' names for `state_dict`, `save_pretrained`, pickling and copying; the sparse forms lie
    beside the dense weights and are derived again after loading. Call it under `torch.inference_mode()` or
    `torch.no_grad()`, as `generate` does by itself: with gradients it computes densely.

    Args:
        model: finalized, loaded, pruned elsewhere, or from `sparsify`.
        backend: "auto": for each layer and number of tokens the faster product, as measured on this machine the first
            time (a few seconds, kept in the user's cache). "sparse": the sparse product for every layer with at least
            30 % zeros. "dense": undo.
        overrides: pattern over full layer names (glob) -> "sparse" or "dense", whatever `backend` says.
        remeasure: measure again instead of reading the cache.

    Raises:
        ValueError: an unknown backend, or a pattern that matches no layer that could be sparse.
        RuntimeError: "sparse" is asked for, but the kernels are not available; the message says why.
    """
    overrides = dict(overrides or {})
    _check(backend, overrides)
    if sparse_layers(model):
        finalize(model)
    for module in list(model.modules()):
        if isinstance(module, InferenceLayer):
            swap_out(module)
    layers = {name: module for name, module in model.named_modules() if inference_class(module) is not None}
    for pattern in overrides:
        if not fnmatch.filter(layers, pattern):
            raise ValueError(f"overrides: {pattern!r} matches no layer; there are {list(layers)[:10]}")
    wanted = {
        name: next((choice for pattern, choice in overrides.items() if fnmatch.fnmatchcase(name, pattern)), backend)
        for name in layers
    }
    library = None if set(wanted.values()) == {"dense"} else kernels.library()
    if library is None and "sparse" in wanted.values():
        raise RuntimeError(f"backend 'sparse' needs the C kernels, but this machine takes {kernels.status()}")
    picker = _Picker(model, library is not None, remeasure)
    picks = {name: picker.pick(module, wanted[name], name in overrides) for name, module in layers.items()}
    picker.save()
    rows = []
    for name, module in layers.items():  # nothing is changed before everything is known to work
        zeros, sparse_for, reason = picks[name]
        shape, size = tuple(module.weight.shape), 0
        if sparse_for:
            swap_in(module, sparse_for)
            size = module.matrix_bytes
        rows.append(BackendRow(name, shape, zeros, "sparse" if sparse_for else "dense", reason, size))
    status = kernels.status() if library is not None or backend == "auto" else "not asked for"
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
        if choice not in ("sparse", "dense"):
            raise ValueError(f"overrides[{pattern!r}] = {choice!r}: allowed are 'sparse' and 'dense'")


class _Picker:
    """Decides layer by layer."""

    def __init__(self, model: nn.Module, kernels_there: bool, remeasure: bool):
        self._kernels_there = kernels_there
        self._remeasure = remeasure
        weights = {id(m.weight): m.weight.nbytes for m in model.modules() if inference_class(m) is not None}
        self._model_bytes = sum(weights.values())
        self._crossover: Crossover | None = None
        self._bypassed = {
            id(child)
            for module in model.modules()
            if isinstance(module, nn.TransformerEncoderLayer)
            for child in (module.linear1, module.linear2)
        }

    def pick(self, layer: nn.Module, wanted: str, named: bool) -> tuple[float, Ranges, str]:
        """(fraction of zeros, numbers of tokens to go sparse for, reason)."""
        if (limit := self._limit(layer)) is not None:
            return _zeros(layer), (), limit
        zeros = _zeros(layer)
        if wanted != "auto" and named:
            return zeros, EVERY_NUMBER if wanted == "sparse" else (), "overrides"
        if wanted == "dense":
            return zeros, (), "asked for"
        if zeros < SPARSITIES[0]:
            return zeros, (), f"fewer than {SPARSITIES[0]:.0%} zeros"
        if wanted == "sparse":
            return zeros, EVERY_NUMBER, "asked for"
        if not self._kernels_there:
            return zeros, (), "no C kernels on this machine"
        if self._crossover is None:
            self._crossover = Crossover(self._remeasure)
        speedups = self._crossover.speedups(layer, zeros, self._model_bytes)
        return zeros, ranges(speedups), _reason(layer, speedups)

    def save(self) -> None:
        if self._crossover is not None:
            self._crossover.save()

    def _limit(self, layer: nn.Module) -> str | None:
        """Why a layer cannot use the kernel, or None."""
        weight = layer._parameters.get("weight")
        if weight is None:
            return "its weight is computed by another module (weight norm, pruning)"
        if weight.device.type != "cpu":
            return f"on {weight.device}: the kernels are for the CPU"
        if weight.dtype != torch.float32:
            return f"{str(weight.dtype).removeprefix('torch.')}: the kernels compute in float32"
        if weight.numel() == 0:
            return "empty"
        if id(layer) in self._bypassed:
            return "nn.TransformerEncoderLayer bypasses the layer in its fast path"
        if isinstance(layer, nn.Conv2d) and not _is_pointwise(layer):
            return "a convolution other than 1x1 with stride 1"
        return None


def _is_pointwise(layer: nn.Conv2d) -> bool:
    return layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.groups == 1 and layer.padding == (0, 0)


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

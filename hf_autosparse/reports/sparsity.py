"""What is sparse, how much, and what was left dense and why."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from io import StringIO
from typing import Any

from rich.console import RenderableType
from torch import nn

from ..layers.sparsify import layer_sparsity, record_of, sparse_layers
from ..utils.tables import as_text, table


@dataclass(frozen=True)
class LayerRow:
    """One sparse layer.

    `sparsity` is the fraction of zeros; `threshold` the mean one, None where there is none or it is not known; `dtype`
    as safetensors calls it and `mac_share`, the layer's share of the dense model's multiply-accumulates, in [0, 1], are
    None where they are not known.
    """

    name: str
    shape: tuple[int, ...]
    sparsity: float
    threshold: float | None = None
    dtype: str | None = None
    mac_share: float | None = None


# Header -> text of a row's cell. A column that is empty in every row is left out.
_COLUMNS: dict[str, Callable[[LayerRow], str]] = {
    "layer": lambda row: row.name or "(the model itself)",
    "shape": lambda row: " x ".join(map(str, row.shape)),
    "dtype": lambda row: row.dtype or "",
    "sparsity": lambda row: f"{row.sparsity:.2%}",
    "threshold": lambda row: "" if row.threshold is None else f"{row.threshold:.3g}",
    "share of MACs": lambda row: "" if row.mac_share is None else f"{row.mac_share:.2%}",
}


@dataclass(frozen=True)
class SparsityReport:
    """`layers`: the sparse ones. `dense`: name -> why it was left dense. `print(report)` shows a table."""

    layers: list[LayerRow]
    dense: dict[str, str]

    @property
    def weights(self) -> int:
        """Number of weights in the sparse layers."""
        return sum(math.prod(row.shape) for row in self.layers)

    @property
    def sparsity(self) -> float:
        """Fraction of zeros over the sparse layers."""
        return sum(row.sparsity * math.prod(row.shape) for row in self.layers) / max(1, self.weights)

    def to_dict(self) -> dict[str, Any]:
        return {
            "sparsity": self.sparsity,
            "weights": self.weights,
            "layers": [asdict(row) for row in self.layers],
            "dense": dict(self.dense),
        }

    def to_csv(self) -> str:
        """One line per sparse layer, under a header; sparsity and share as fractions, shape as "64x16"."""
        text = StringIO()
        writer = csv.DictWriter(text, [field.name for field in fields(LayerRow)], lineterminator="\n")
        writer.writeheader()
        for row in self.layers:
            writer.writerow(asdict(row) | {"shape": "x".join(map(str, row.shape))})
        return text.getvalue()

    def parts(self) -> list[RenderableType]:
        """The tables that make up the report, for a rich console."""
        cells = {header: [cell(row) for row in self.layers] for header, cell in _COLUMNS.items()}
        shown = {header: column for header, column in cells.items() if any(column) or header == "layer"}
        title = f"sparsity {self.sparsity:.2%} of {self.weights:,} weights in {len(self.layers)} sparse layers"
        parts: list[RenderableType] = [table(title, list(shown), zip(*shown.values(), strict=True))]
        return parts + ([self._dense_table()] if self.dense else [])

    def _dense_table(self) -> RenderableType:
        return table("left dense", ["module", "why"], grouped(self.dense), words=2)

    def __str__(self) -> str:
        return as_text(self.parts())


def grouped(dense: dict[str, str]) -> list[tuple[str, str]]:
    """(name, why); names that differ in a block's number only, and share a reason, as one: `layers.*.norm (12)`."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, why in dense.items():
        pattern = ".".join("*" if part.isdecimal() else part for part in name.split("."))
        groups.setdefault((pattern, why), []).append(name or "(the model itself)")
    return [
        (names[0] if len(names) == 1 else f"{pattern} ({len(names)})", why) for (pattern, why), names in groups.items()
    ]


def _shape_of(layer: nn.Module) -> tuple[int, ...]:
    weight: Any = layer.weight
    return tuple(weight.shape)


def sparsity_report(model: nn.Module) -> SparsityReport:
    """Report on a model that `sparsify` treated (before or after `finalize`), or on any model with zeros.

    For a model that `sparsify` never saw, every Linear, Conv2d and Conv1D is listed and `dense` is empty.
    """
    live = sparse_layers(model)
    rows = []
    for name, fraction in layer_sparsity(model).items():
        metrics = live[name].sparsifier.metrics() if name in live else {}
        threshold = metrics.get("mean_threshold")
        shape = _shape_of(model.get_submodule(name))
        rows.append(LayerRow(name, shape, fraction, None if threshold is None else float(threshold)))
    record = record_of(model)
    return SparsityReport(rows, dict(record.dense) if record is not None else {})

"""What is sparse, how much, and what was left dense and why."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from io import StringIO
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import nn

from .sparsify import layer_sparsity, record_of, sparse_layers


@dataclass(frozen=True)
class LayerRow:
    """One sparse layer. `sparsity` is the fraction of zeros; `threshold` None where the method has none."""

    name: str
    shape: tuple[int, ...]
    sparsity: float
    threshold: float | None


@dataclass(frozen=True)
class SparsityReport:
    """`layers`: the sparse ones. `dense`: module name -> why it was left dense. `print(report)` shows a table."""

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

    def __str__(self) -> str:
        table = Table(
            title=f"sparsity {self.sparsity:.2%} of {self.weights:,} weights in {len(self.layers)} sparse layers"
        )
        table.add_column("layer", overflow="fold")
        for header in ("shape", "sparsity", "threshold"):
            table.add_column(header, justify="right", no_wrap=True)
        for row in self.layers:
            threshold = "" if row.threshold is None else f"{row.threshold:.3g}"
            table.add_row(row.name, " x ".join(map(str, row.shape)), f"{row.sparsity:.2%}", threshold)
        parts = [table]
        if self.dense:
            left = Table(title="left dense")
            left.add_column("module", overflow="fold")
            left.add_column("why", overflow="fold")
            for name, reason in self.dense.items():
                left.add_row(name or "(the model itself)", reason)
            parts.append(left)
        console = Console(file=StringIO(), width=120)
        console.print(*parts, sep="\n")
        return console.file.getvalue().rstrip()


def sparsity_report(model: nn.Module) -> SparsityReport:
    """Report on a model that `sparsify` treated (before or after `finalize`), or on any model with zeros.

    For a model that `sparsify` never saw, every Linear, Conv2d and Conv1D is listed and `dense` is empty.
    """
    live = sparse_layers(model)
    rows = []
    for name, fraction in layer_sparsity(model).items():
        metrics = live[name].sparsifier.metrics() if name in live else {}
        threshold = metrics.get("mean_threshold")
        shape = tuple(model.get_submodule(name).weight.shape)
        rows.append(LayerRow(name, shape, fraction, None if threshold is None else float(threshold)))
    record = record_of(model)
    return SparsityReport(rows, dict(record.dense) if record is not None else {})

"""What pruning did to each layer: printable, as JSON, and as a section of the model card."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import RenderableType

from ..utils.tables import as_text, table

FORMAT_VERSION = 1


@dataclass(frozen=True)
class PrunedLayer:
    """One layer, or one expert.

    Args:
        name: of the layer; an expert's number stands behind its weight's name.
        shape: of its weight.
        sparsity: fraction of zeros that it has now.
        method: what pruned it; None if it was left dense.
        error: `||WX - W'X|| / ||WX||` over the calibration inputs X, None where no inputs are known.
        note: why it was not pruned as asked, or "".
    """

    name: str
    shape: tuple[int, ...]
    sparsity: float
    method: str | None
    error: float | None = None
    note: str = ""


@dataclass(frozen=True)
class PruneReport:
    """What `prune` did. `print(report)` shows a table.

    Args:
        settings: the method and its settings, sparsity, pattern, allocation, calibration.
        layers: one row a layer.
        dense: name of a module that was not to be pruned -> why.
    """

    settings: dict[str, Any]
    layers: list[PrunedLayer]
    dense: dict[str, str]

    @property
    def weights(self) -> int:
        """Number of weights in the layers listed."""
        return sum(math.prod(row.shape) for row in self.layers)

    @property
    def sparsity(self) -> float:
        """Fraction of zeros over the layers listed."""
        return sum(row.sparsity * math.prod(row.shape) for row in self.layers) / max(1, self.weights)

    def to_dict(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "settings": self.settings,
            "sparsity": self.sparsity,
            "weights": self.weights,
            "layers": [asdict(row) for row in self.layers],
            "dense": self.dense,
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def parts(self) -> list[RenderableType]:
        """The tables that make up the report, for a rich console."""
        title = f"{self.summary}: sparsity {self.sparsity:.2%} of {self.weights:,} weights in {len(self.layers)} layers"
        rows = [
            (row.name, " x ".join(map(str, row.shape)), f"{row.sparsity:.2%}", _percent(row.error))
            for row in self.layers
        ]
        parts: list[RenderableType] = [table(title, ["layer", "shape", "sparsity", "output error"], rows)]
        if noted := [(row.name, row.note) for row in self.layers if row.note]:
            parts.append(table("not as asked", ["layer", "why"], noted, words=2))
        if self.dense:
            parts.append(table("left dense", ["module", "why"], list(self.dense.items()), words=2))
        return parts

    @property
    def summary(self) -> str:
        """The method, pattern and allocation in a few words: "sparsegpt 2:4"."""
        pattern, allocation = self.settings["pattern"], self.settings["allocation"]["name"]
        words = [self.settings["method"]["name"], pattern or "", "" if allocation == "uniform" else allocation]
        return " ".join(word for word in words if word)

    def __str__(self) -> str:
        return as_text(self.parts())

    def to_markdown(self) -> str:
        """The section of the model card that says how the model was pruned."""
        settings = self.settings
        own = ", ".join(f"{key} {value}" for key, value in settings["method"].items() if key not in ("name", "paper"))
        where = f"pattern {settings['pattern']}" if settings["pattern"] else f"sparsity {settings['sparsity']:.2%}"
        errors = sorted(row.error for row in self.layers if row.error is not None)
        noted: dict[str, int] = {}
        for row in self.layers:
            if row.note:
                noted[row.note] = noted.get(row.note, 0) + 1
        lines = [
            "## Pruning",
            "",
            f"Pruned in one shot with hf_autosparse, without training: {settings['method']['name']}"
            f" ({settings['method']['paper']}){f', {own}' if own else ''}; {where}, {settings['allocation']['name']}"
            f" over the layers. {self.sparsity:.2%} of the {self.weights:,} weights in {len(self.layers)} layers are"
            " exactly zero.",
            "",
            f"Calibration: {settings['calibration']}.",
        ]
        if errors:
            lines += [
                "",
                "Relative error of a layer's output on the calibration inputs, `||WX - W'X|| / ||WX||`: median"
                f" {_percent(errors[len(errors) // 2])}, largest {_percent(errors[-1])}.",
            ]
        lines += [f"\n- {count} of them: {note}" for note, count in noted.items()]
        return "\n".join(lines) + "\n"


def layer_from_dict(values: Mapping[str, Any]) -> PrunedLayer:
    """The row that `asdict` made the dictionary of, with lists for tuples as JSON has them."""
    return PrunedLayer(**{**values, "shape": tuple(values["shape"])})


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"

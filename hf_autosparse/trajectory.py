"""How the sparsity of a run developed: what its theoretical FLOPs, its plots and its model card are made of."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FILE_NAME = "autosparse_trajectory.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class LayerCost:
    """`macs`: multiply-accumulates of the layer for one example when dense. `weights`: its number of weights."""

    macs: int
    weights: int


@dataclass(frozen=True)
class Moment:
    """The state that held from optimizer step `step` (steps done) on, until the next moment.

    The tuples have one entry per name in `Trajectory.sparse`; sparsity is the fraction of zeros, in [0, 1].

    Args:
        alpha: None for a method without one.
        sparsity: of the effective weights: the forward pass and the input gradient.
        backward_sparsity: of the weight gradient; 0.0 where it is dense (alpha > 0 and no `backward_sparsity` set).
        threshold: mean threshold of each layer; None for a method without thresholds.
    """

    step: int
    epoch: float
    alpha: float | None
    sparsity: tuple[float, ...]
    backward_sparsity: tuple[float, ...]
    threshold: tuple[float, ...] | None


@dataclass
class Trajectory:
    """One run.

    Args:
        max_steps: optimizer steps of the whole run.
        sparse: names of the sparse layers, in registration order.
        layers: name -> cost of every layer that the FLOPs count (Linear, Conv2d, Conv1D), dense ones included; empty
            where it was not measured.
        moments: in order of `step`.
    """

    max_steps: int
    sparse: list[str]
    layers: dict[str, LayerCost] = field(default_factory=dict)
    moments: list[Moment] = field(default_factory=list)

    def save(self, directory: str | os.PathLike) -> None:
        """Write `autosparse_trajectory.json` into `directory` (made if absent), atomically."""
        path = Path(directory) / FILE_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}.tmp")
        draft.write_text(json.dumps({"format_version": FORMAT_VERSION, **asdict(self)}) + "\n")
        os.replace(draft, path)

    @classmethod
    def load(cls, directory: str | os.PathLike) -> Trajectory:
        """Inverse of `save`.

        Raises:
            FileNotFoundError: the directory has none.
            ValueError: it is no trajectory, damaged, or of an unknown version.
        """
        path = Path(directory) / FILE_NAME
        if not path.is_file():
            raise FileNotFoundError(f"no {FILE_NAME} in {directory}: an AutoSparse trainer writes it beside the model")
        try:
            values: dict[str, Any] = json.loads(path.read_text())
            version = values.pop("format_version", None)
        except (ValueError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} is no JSON object: {error}") from error
        if version != FORMAT_VERSION:
            raise ValueError(f"{path} has format_version {version!r}, this release reads {FORMAT_VERSION}")
        try:
            trajectory = cls(
                max_steps=int(values["max_steps"]),
                sparse=[str(name) for name in values["sparse"]],
                layers={name: LayerCost(**cost) for name, cost in values["layers"].items()},
                moments=[_moment(moment, len(values["sparse"])) for moment in values["moments"]],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path} is damaged: {type(error).__name__}: {error}") from error
        return trajectory


def _moment(values: dict[str, Any], layers: int) -> Moment:
    columns = {name: values.pop(name) for name in ("sparsity", "backward_sparsity", "threshold")}
    for name, column in columns.items():
        if column is None and name == "threshold":
            continue
        if len(column) != layers:
            raise ValueError(f"{name} has {len(column)} entries at step {values.get('step')}, expected {layers}")
        columns[name] = tuple(float(value) for value in column)
    return Moment(**values, **columns)

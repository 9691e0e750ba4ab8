"""How the sparsity of a run developed: what its theoretical FLOPs, its plots and its model card are made of."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from itertools import pairwise
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
        layers: name -> cost of every layer that the FLOPs count (see `flop_counter`), dense ones included; empty where
            it was not measured.
        moments: in order of `step`.
        steps_done: optimizer steps made so far, up to which the last moment holds; None for all of `max_steps`.
    """

    max_steps: int
    sparse: list[str]
    layers: dict[str, LayerCost] = field(default_factory=dict)
    moments: list[Moment] = field(default_factory=list)
    steps_done: int | None = None

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
            values = json.loads(path.read_text())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"{path} holds a {type(values).__name__}, expected a JSON object")
        version = values.get("format_version")
        if version != FORMAT_VERSION:
            raise ValueError(f"{path} has format_version {version!r}, this release reads {FORMAT_VERSION}")
        try:
            return _trajectory(values)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ValueError(f"{path} is damaged: {type(error).__name__}: {error}") from error


def _trajectory(values: dict[str, Any]) -> Trajectory:
    sparse = [str(name) for name in values["sparse"]]
    moments = [_moment(moment, len(sparse)) for moment in values["moments"]]
    steps = [moment.step for moment in moments]
    if any(later <= earlier for earlier, later in pairwise(steps)):
        raise ValueError(f"steps do not increase: {steps}")
    done = values.get("steps_done")
    return Trajectory(
        max_steps=_count(values["max_steps"]),
        sparse=sparse,
        layers={name: LayerCost(_count(c["macs"]), _count(c["weights"])) for name, c in values["layers"].items()},
        moments=moments,
        steps_done=None if done is None else _count(done),
    )


def _count(value: Any) -> int:
    if not 0 <= int(value) < 2**63:
        raise ValueError(f"{value!r:.40} is no count")
    return int(value)


def _moment(values: dict[str, Any], layers: int) -> Moment:
    step, alpha, threshold = _count(values["step"]), values["alpha"], values["threshold"]

    def column(name: str) -> tuple[float, ...]:
        numbers = tuple(float(value) for value in values[name])
        if len(numbers) != layers:
            raise ValueError(f"{name} has {len(numbers)} entries at step {step}, expected {layers}")
        if not all(0 <= number <= 1 for number in numbers):
            raise ValueError(f"{name} at step {step} is not in [0, 1]: {numbers}")
        return numbers

    return Moment(
        step=step,
        epoch=float(values["epoch"]),
        alpha=None if alpha is None else float(alpha),
        sparsity=column("sparsity"),
        backward_sparsity=column("backward_sparsity"),
        threshold=None if threshold is None else column("threshold"),
    )

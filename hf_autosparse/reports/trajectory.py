"""How the sparsity of a run developed: what its theoretical FLOPs, its plots and its model card are made of."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..serialization.files import TRAJECTORY
from ..utils.io import StrPath, read_versioned_json, write_versioned_json

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
        layers: name -> cost of every layer that the FLOPs count (see `reports.flops`), dense ones included; empty where
            it was not measured.
        moments: in order of `step`.
        steps_done: optimizer steps made so far, up to which the last moment holds; None for all of `max_steps`.
    """

    max_steps: int
    sparse: list[str]
    layers: dict[str, LayerCost] = field(default_factory=dict)
    moments: list[Moment] = field(default_factory=list)
    steps_done: int | None = None

    def save(self, directory: StrPath) -> None:
        """Write `autosparse_trajectory.json` into `directory` (made if absent), atomically."""
        write_versioned_json(Path(directory) / TRAJECTORY, FORMAT_VERSION, asdict(self), indent=None)

    @classmethod
    def load(cls, directory: StrPath) -> Trajectory:
        """Inverse of `save`.

        Raises:
            FileNotFoundError: the directory has none.
            ValueError: it is no trajectory, damaged, or of an unknown version.
        """
        path = Path(directory) / TRAJECTORY
        if not path.is_file():
            raise FileNotFoundError(f"no {TRAJECTORY} in {directory}: an AutoSparse trainer writes it beside the model")
        values = read_versioned_json(path, FORMAT_VERSION)
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

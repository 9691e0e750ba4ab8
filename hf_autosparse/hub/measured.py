"""What a run or a model measured: figures and facts, no wording. The card starts from these."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ..layers.sparsify import plain_parameters, record_of
from ..methods import CONFIG_NAME, SparseConfig
from ..reports.checkpoint import checkpoint_report
from ..reports.flops import layer_fraction, training_fraction
from ..reports.sparsity import SparsityReport, sparsity_report
from ..reports.trajectory import Trajectory
from ..serialization.files import PLOTS, TRAJECTORY
from ..utils.io import StrPath

_NOT_A_METRIC = re.compile(
    r"epoch|step|.*(_runtime|_per_second|_compilation_time|_preparation_time|_flos|_mem_.*|_tokens_seen)"
)


@dataclass(frozen=True)
class Evaluation:
    """Task metrics and which weights they are of.

    Args:
        metrics: name -> value, as `evaluate` logged them.
        step: the optimizer step of the evaluation; None where it is not known.
        epoch: its epoch, if it was logged.
        weights_step: the step whose weights the model has.
        is_best: these are the weights of the best checkpoint, loaded at the end of training.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    step: int | None = None
    epoch: float | None = None
    weights_step: int | None = None
    is_best: bool = False


@dataclass(frozen=True)
class TheoreticalFlops:
    """Multiply-accumulates of one example when dense; `inference` and `training`: the fractions that are left."""

    macs: int
    inference: float
    training: float | None = None


@dataclass(frozen=True)
class Measured:
    """Everything that a card may state about a model; what is None or empty was not measured, and is left out.

    Args:
        report: its sparse layers, and what stayed dense.
        parameters: number of all parameters, those outside the sparse layers included.
        config: the configuration that it was trained with.
        evaluation: its task metrics.
        dense: the same metrics of its dense twin.
        flops: multiply-accumulates, counted.
        figures: paths of pictures, relative to the card.

    Raises:
        ValueError: a metric is not a finite number, or a dense metric was not measured on the sparse model.
    """

    report: SparsityReport
    parameters: int
    config: SparseConfig | None = None
    evaluation: Evaluation = field(default_factory=Evaluation)
    dense: Mapping[str, float] = field(default_factory=dict)
    flops: TheoreticalFlops | None = None
    figures: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field_name, values in {"metrics": self.evaluation.metrics, "dense_metrics": self.dense}.items():
            for name, value in values.items():
                if not _is_number(value):
                    raise ValueError(f"{field_name}[{name!r}] = {value!r} is not allowed: use a finite number")
        for name in self.dense:
            if name not in self.evaluation.metrics:
                known = list(self.evaluation.metrics)
                near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known
                hint = f"measured were {', '.join(near)}" if near else "nothing was: call evaluate() first"
                raise ValueError(f"dense_metrics has {name!r}, which was not measured on the sparse model: {hint}")


def measure(
    source: nn.Module | StrPath,
    *,
    trajectory: Trajectory | None = None,
    figures: tuple[str, ...] = (),
    evaluation: Evaluation | None = None,
    dense_metrics: Mapping[str, float] | None = None,
) -> Measured:
    """Everything that is known of a model, or of the directory of a saved one.

    Args:
        source: the model; or a directory, where `trajectory` and `figures` are read from its files.
        trajectory: how the model's sparsity developed.
        figures: paths of pictures, relative to the card.
        evaluation: its task metrics.
        dense_metrics: the same metrics of its dense twin.

    Raises:
        ValueError: a metric is not a finite number, or a dense metric was not measured on the sparse model.
    """
    config: SparseConfig | None = None
    if isinstance(source, nn.Module):
        report, parameters = sparsity_report(source), parameter_count(source)
        record = record_of(source)
        config = record.config if record is not None else None
    else:
        directory = Path(source)
        saved = checkpoint_report(directory)
        report, parameters = saved, saved.values
        config = SparseConfig.from_pretrained(directory) if (directory / CONFIG_NAME).is_file() else None
        trajectory = Trajectory.load(directory) if (directory / TRAJECTORY).is_file() else None
        figures = figures_in(directory)
    return Measured(
        report,
        parameters,
        config,
        evaluation or Evaluation(),
        dense_metrics or {},
        theoretical_flops(trajectory, report),
        figures,
    )


def figures_in(directory: StrPath) -> tuple[str, ...]:
    """The pictures in `plots/`, relative to the directory."""
    return tuple(f"{PLOTS}/{path.name}" for path in sorted(Path(directory).glob(f"{PLOTS}/*.png")))


def last_evaluation(log_history: list[dict[str, Any]], global_step: int, best_step: int | None) -> Evaluation:
    """The newest evaluation in a Trainer's log that describes the weights it holds now.

    Args:
        log_history: `trainer.state.log_history`.
        global_step: the step that the run has reached.
        best_step: the step whose weights were loaded at the end of training (`load_best_model_at_end`), or None.
    """
    ends = [i for i, entry in enumerate(log_history) if "train_runtime" in entry]
    evaluations = [(i, e) for i, e in enumerate(log_history) if any(key.startswith("eval_") for key in e)]
    if best_step is not None:
        after = [(i, e) for i, e in evaluations if ends and i > ends[-1]]
        evaluations = after or [(i, e) for i, e in evaluations if e["step"] == best_step]
    if not evaluations:
        return Evaluation()
    newest = evaluations[-1][1]
    metrics: dict[str, float] = {}
    for _, entry in evaluations:
        if entry["step"] == newest["step"]:  # there is one entry for each of several evaluation sets
            metrics |= {key: float(value) for key, value in entry.items() if _is_metric(key, value)}
    weights_step = global_step if best_step is None else best_step
    return Evaluation(metrics, newest["step"], newest.get("epoch"), weights_step, best_step is not None)


def theoretical_flops(trajectory: Trajectory | None, report: SparsityReport) -> TheoreticalFlops | None:
    """From what the layers of a run cost: inference with the sparsity of `report`, training over the run's moments.

    None where the costs were not measured; `training` is None where the run's beginning was not.
    """
    if trajectory is None:
        return None
    macs = {name: cost.macs for name, cost in trajectory.layers.items()}
    if not any(macs.values()):
        return None
    recorded = trajectory.moments[-1].sparsity if trajectory.moments else (0.0,) * len(trajectory.sparse)
    sparsity = dict(zip(trajectory.sparse, recorded, strict=True)) | {row.name: row.sparsity for row in report.layers}
    inference = layer_fraction(list(macs.values()), [1 - sparsity.get(name, 0.0) for name in macs])
    try:
        training: float | None = training_fraction(trajectory)
    except ValueError:  # resumed from a checkpoint without a trajectory, or not begun
        training = None
    return TheoreticalFlops(sum(macs.values()), inference, training)


def parameter_count(model: nn.Module) -> int:
    """Parameters of the model as it is deployed: a sparsifier's parameters do not count, tied weights count once."""
    return sum(parameter.numel() for parameter in plain_parameters(model).values())


def _is_metric(name: str, value: Any) -> bool:
    return _is_number(value) and not _NOT_A_METRIC.fullmatch(name)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

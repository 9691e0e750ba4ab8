"""The model card: what a run measured, as sections of a README.md and as the metadata that the Hub indexes.

A section stands between two comments that name it, so that writing a card again replaces it and leaves the rest alone.
A figure that was not measured is left out.
"""

from __future__ import annotations

import difflib
import math
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import yaml_dump
from transformers.modelcard import TASK_MAPPING

from ..config import AutoSparseConfig
from ..layers.sparsify import plain_parameters
from ..reports.flops import layer_fraction, training_fraction
from ..reports.layer_types import layer_type
from ..reports.sparsity import SparsityReport
from ..reports.trajectory import Trajectory

PACKED_LIBRARY = "hf_autosparse"
_BEGIN, _END = "<!-- hf_autosparse: {} -->", "<!-- end of {} -->"
_NOT_A_METRIC = re.compile(
    r"epoch|step|.*(_runtime|_per_second|_compilation_time|_preparation_time|_flos|_mem_.*|_tokens_seen)"
)
_BASE_RESULTS = re.compile(r"\nIt achieves the following results on the evaluation set:\n(?:- .*\n)+")


@dataclass(frozen=True)
class Evaluation:
    """`metrics`: name -> value, as `evaluate` logged them. `moment`: when, as a sentence for the reader."""

    metrics: dict[str, float]
    moment: str = ""


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
        evaluation: its task metrics.
        dense: the same metrics of its dense twin.
        figures: paths of pictures, relative to the card.
    """

    report: SparsityReport
    parameters: int
    config: AutoSparseConfig | None = None
    evaluation: Evaluation = field(default_factory=lambda: Evaluation({}))
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


@dataclass(frozen=True)
class Loading:
    """How to load the model. `sizes`: bytes of the weight files plain and packed; None for a plain upload."""

    repo_id: str
    model_class: str | None
    packed: bool = False
    sizes: tuple[int, int] | None = None


# ---- What was measured ----


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
        return Evaluation({})
    newest = evaluations[-1][1]
    metrics: dict[str, float] = {}
    for _, entry in evaluations:
        if entry["step"] == newest["step"]:  # there is one entry for each of several evaluation sets
            metrics |= {key: float(value) for key, value in entry.items() if _is_metric(key, value)}
    weights_of = global_step if best_step is None else best_step
    where = f"step {newest['step']}" + (f" (epoch {newest['epoch']:g})" if "epoch" in newest else "")
    if best_step is not None:
        return Evaluation(metrics, f"The weights are those of step {best_step}, the best checkpoint of the run.")
    if newest["step"] == weights_of:
        return Evaluation(metrics, f"Evaluated at {where}, with the weights of this model.")
    return Evaluation(metrics, f"Evaluated at {where}; the weights of this model are those of step {weights_of}.")


def theoretical_flops(trajectory: Trajectory | None, report: SparsityReport) -> TheoreticalFlops | None:
    """From what the layers of a run cost: inference with the sparsity of `report`, training over the run's moments.

    None where the costs were not measured; `training` is None where the run's beginning was not.
    """
    macs = {name: cost.macs for name, cost in trajectory.layers.items()} if trajectory is not None else {}
    if not any(macs.values()):
        return None
    recorded = trajectory.moments[-1].sparsity if trajectory.moments else [0.0] * len(trajectory.sparse)
    sparsity = dict(zip(trajectory.sparse, recorded, strict=True)) | {row.name: row.sparsity for row in report.layers}
    inference = layer_fraction(list(macs.values()), [1 - sparsity.get(name, 0.0) for name in macs])
    try:
        training = training_fraction(trajectory)
    except ValueError:  # resumed from a checkpoint without a trajectory, or not begun
        training = None
    return TheoreticalFlops(sum(macs.values()), inference, training)


def parameter_count(model: torch.nn.Module) -> int:
    """Parameters of the model as it is deployed: thresholds and the like do not count, tied weights count once."""
    return sum(parameter.numel() for parameter in plain_parameters(model).values())


def _is_metric(name: str, value: Any) -> bool:
    return _is_number(value) and not _NOT_A_METRIC.fullmatch(name)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def task_of(model_class: str | None) -> str | None:
    """The Hub's task of a transformers model class ("text-classification"), or None if it has none."""
    for task, classes in TASK_MAPPING.items():
        for names in classes.values():
            if model_class == names or (isinstance(names, (tuple, list)) and model_class in names):
                return task
    return None


def tags(config: AutoSparseConfig | None) -> list[str]:
    """What the Hub finds the model by; the method's name is among them."""
    return list(dict.fromkeys(["sparse", "autosparse", *([config.method] if config is not None else [])]))


def package_version() -> str:
    from ..utils.version import __version__

    return __version__


# ---- Writing ----


def new_card(measured: Measured, loading: Loading) -> ModelCard:
    """A card for a model of which no Trainer wrote one."""
    data = ModelCardData(library_name="transformers" if loading.model_class else None, tags=[])
    name = loading.repo_id.split("/")[-1]
    return extend(ModelCard(f"---\n{data.to_yaml()}\n---\n\n# {name}\n"), measured, loading)


def extend(
    card: ModelCard, measured: Measured, loading: Loading, *, task: str | None = None, replace: bool = True
) -> ModelCard:
    """The card with our sections and metadata: what was measured, and how to load the model.

    Args:
        task: the Hub's task; None for that of the model's class.
        replace: False keeps the sections that the card has, but for the evaluation where there is one.
    """
    data = card.data
    data.tags = list(dict.fromkeys([*(data.tags or []), *tags(measured.config)]))
    task = task or task_of(loading.model_class)
    if task is not None and data.get("pipeline_tag") is None:
        data.pipeline_tag = task
    if task is not None and measured.evaluation.metrics:
        data.model_name = data.model_name or loading.repo_id.split("/")[-1]
        data.eval_results = _eval_results(data, task, measured.evaluation.metrics)
    sections = _sections(measured)
    if not replace:
        sections = {n: body for n, body in sections.items() if n == "evaluation" or _BEGIN.format(n) not in card.text}
    card.text = insert(_BASE_RESULTS.sub("\n", card.text), sections)  # our table says which weights the results are of
    return describe_loading(card, loading)


def describe_loading(card: ModelCard, loading: Loading) -> ModelCard:
    """Say how this model is loaded, and let the Hub offer no code that could not load it."""
    card.text = insert(card.text, {"loading": _loading(loading)})
    if loading.packed:
        # The Hub's own snippet for transformers would not import this package: it would load random weights.
        card.data.library_name = PACKED_LIBRARY
    elif card.data.get("library_name") == PACKED_LIBRARY:
        card.data.library_name = "transformers"
    return card


def insert(text: str, sections: Mapping[str, str]) -> str:
    """Replace the named sections of a card's text; new ones go before its second heading, in the order given."""
    for name, body in sections.items():
        begin, end = _BEGIN.format(name), _END.format(name)
        block = f"{begin}\n{body.strip()}\n{end}"
        if begin in text and end in text:
            text = text[: text.index(begin)] + block + text[text.index(end) + len(end) :]
            continue
        ours = [match.end() for match in re.finditer(r"<!-- end of \w+ -->\n", text)]
        place = ours[-1] if ours else _second_heading(text)
        text = f"{text[:place].rstrip()}\n\n{block}\n\n{text[place:].lstrip()}".rstrip() + "\n"
    return text


def _second_heading(text: str) -> int:
    """Where the introduction ends: at the second heading outside code, or at the end of the text."""
    position, headings, in_code = 0, 0, False
    for line in text.splitlines(keepends=True):
        in_code ^= line.startswith(("```", "~~~"))
        headings += not in_code and re.match(r"#{1,6} ", line) is not None
        if headings == 2:
            return position
        position += len(line)
    return position


def _eval_results(data: ModelCardData, task: str, metrics: Mapping[str, float]) -> list[EvalResult]:
    """One result per metric, on the data set that the base card names. Without one the Hub still wants a word there."""
    base = data.eval_results[0] if data.eval_results else None
    named = ([data.datasets] if isinstance(data.datasets, str) else data.datasets) or ["unknown"]
    return [
        EvalResult(
            task_type=base.task_type if base else task,
            task_name=base.task_name if base else None,
            dataset_type=base.dataset_type if base else named[0],
            dataset_name=base.dataset_name if base else named[0],
            dataset_config=base.dataset_config if base else None,
            dataset_split=base.dataset_split if base else None,
            dataset_args=base.dataset_args if base else None,
            metric_type=re.sub(r"^(eval|test)_", "", name),
            metric_name=name,
            metric_value=value,
        )
        for name, value in metrics.items()
    ]


# ---- Sections ----


def _sections(measured: Measured) -> dict[str, str]:
    parts = {
        "evaluation": _evaluation(measured),
        "sparsity": _sparsity(measured),
        "flops": _flops(measured.flops),
        "figures": _figures(measured.figures),
        "configuration": _configuration(measured.config),
    }
    return {name: body for name, body in parts.items() if body}


def _table(header: list[str], rows: Iterable[list[str]]) -> str:
    """Markdown, the first column to the left and the others to the right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _evaluation(measured: Measured) -> str:
    metrics, dense = measured.evaluation.metrics, measured.dense
    if not metrics:
        return ""
    if dense:
        header = ["metric", "dense twin", "this model", "relative change"]
        rows = [[_code(n), _number(dense.get(n)), _number(v), _change(dense.get(n), v)] for n, v in metrics.items()]
    else:
        header, rows = ["metric", "this model"], [[_code(n), _number(v)] for n, v in metrics.items()]
    return f"## Evaluation\n\n{_table(header, rows)}\n\n{measured.evaluation.moment}"


def _code(text: str) -> str:
    return f"`{text}`"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"


def _change(dense: float | None, sparse: float) -> str:
    return "" if not dense else f"{(sparse - dense) / abs(dense):+.2%}"


def _sparsity(measured: Measured) -> str:
    report = measured.report
    kinds: dict[str, list] = {}
    for row in report.layers:
        kinds.setdefault(layer_type(row.name, row.shape), []).append(row)
    rows = []
    for kind, layers in kinds.items():
        part = SparsityReport(layers, {})
        rows.append([kind, str(len(layers)), f"{part.weights:,}", f"{part.sparsity:.2%}"])
    total = [len(report.layers), report.weights, report.sparsity]
    rows.append([f"**{text}**" for text in ("all sparse layers", f"{total[0]}", f"{total[1]:,}", f"{total[2]:.2%}")])
    zeros = round(report.sparsity * report.weights)
    parts = [
        "## Sparsity",
        _table(["layers", "number", "weights", "sparsity"], rows),
        f"Sparsity is the fraction of weights that are exactly zero. Of all {measured.parameters:,} parameters of the"
        f" model, {zeros / measured.parameters:.2%} are zeros of these layers.",
    ]
    if report.dense:
        reasons: dict[str, list[str]] = {}
        for name, reason in report.dense.items():
            reasons.setdefault(reason, []).append(_code(name or "(the model itself)"))
        parts.append("Left dense:\n\n" + "\n".join(f"- {reason}: {_list(names)}" for reason, names in reasons.items()))
    return "\n\n".join(parts)


def _list(names: list[str], most: int = 8) -> str:
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[:3])} and {len(names) - 3} more"


def _flops(flops: TheoreticalFlops | None) -> str:
    if flops is None:
        return ""
    rows = [["inference", f"{flops.inference:.4f}"]]
    if flops.training is not None:
        rows.append(["training", f"{flops.training:.4f}"])
    return "\n\n".join(
        [
            "## Theoretical FLOPs",
            _table(["", "fraction of dense"], rows),
            "Counted, not timed: multiply-accumulates of the linear and convolutional layers with zeros left out; dense"
            f" they are {flops.macs:,} for one example. Training counts the forward pass and both gradients over the"
            " whole run.",
        ]
    )


def _figures(paths: tuple[str, ...]) -> str:
    pictures = [f"![{path.rpartition('/')[2].removesuffix('.png').replace('_', ' ')}]({path})" for path in paths]
    return "## Figures\n\n" + "\n\n".join(pictures) if pictures else ""


def _configuration(config: AutoSparseConfig | None) -> str:
    if config is None:
        return ""
    versions = f"hf_autosparse {package_version()}, transformers {transformers.__version__}, torch {torch.__version__}"
    return (
        "## Sparse training\n\nThe `AutoSparseConfig` of the run (method of"
        " [AutoSparse, arXiv 2304.06941](https://arxiv.org/abs/2304.06941)):\n\n"
        f"```yaml\n{yaml_dump(config.to_dict(), sort_keys=False).strip()}\n```\n\n"
        f"Written by {versions}, Python {platform.python_version()}."
    )


def _loading(loading: Loading) -> str:
    heading = "## How to load it"
    imports = "import hf_autosparse  # first: it teaches transformers the packed format\n" if loading.packed else ""
    if loading.model_class is None and loading.packed:
        code = 'hf_autosparse.unpack("directory of this repository", "directory for plain weights")'
    elif loading.model_class is None:
        code = 'from safetensors.torch import load_file\n\nmodel.load_state_dict(load_file("model.safetensors"))'
    else:
        code = f"from transformers import {loading.model_class}\n\n"
        code += f'model = {loading.model_class}.from_pretrained("{loading.repo_id}")'
    parts = [heading, f"```python\n{imports}{code}\n```"]
    if not loading.packed:
        parts.append("These are plain weights with zeros in them; no further package is needed.")
        return "\n\n".join(parts)
    if loading.sizes is not None:
        plain, packed = loading.sizes
        parts.append(f"The weights are packed: {packed:,} bytes instead of {plain:,} ({packed / plain:.1%}).")
    parts.append(
        "`pip install hf-autosparse` and import it before loading: without it transformers does not know this format,"
        " warns, and starts from random weights. `hf_autosparse.unpack` turns the files into plain ones."
    )
    return "\n\n".join(parts)

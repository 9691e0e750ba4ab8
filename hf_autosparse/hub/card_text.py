"""The words of a model card: each section from what was measured. A change of wording is a change of this file only."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import transformers
import yaml

from ..methods import SparseConfig, method_of
from ..reports.layer_names import layer_type
from ..reports.sparsity import LayerRow, SparsityReport
from ..utils.version import __version__
from .measured import Evaluation, Measured, TheoreticalFlops

# What Trainer writes of a model that was not loaded from anywhere, and what is true of it.
TRAINERS_FINE_TUNED_FROM_NOTHING = "This model is a fine-tuned version of [](https://huggingface.co/) on"
TRAINED_FROM_SCRATCH = "This model was trained from scratch on"


@dataclass(frozen=True)
class Loading:
    """How to load the model. `sizes`: bytes of the weight files plain and packed; None for a plain upload."""

    repo_id: str
    model_class: str | None
    packed: bool = False
    sizes: tuple[int, int] | None = None


def sections(measured: Measured) -> dict[str, str]:
    """Name -> Markdown of each section that there is something to say in, in order."""
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
    return f"## Evaluation\n\n{_table(header, rows)}\n\n{_moment(measured.evaluation)}".rstrip()


def _moment(evaluation: Evaluation) -> str:
    """Which weights were evaluated, as a sentence; empty where it is not known."""
    if evaluation.is_best:
        return f"The weights are those of step {evaluation.weights_step}, the best checkpoint of the run."
    if evaluation.step is None:
        return ""
    where = f"step {evaluation.step}" + ("" if evaluation.epoch is None else f" (epoch {evaluation.epoch:g})")
    if evaluation.step == evaluation.weights_step:
        return f"Evaluated at {where}, with the weights of this model."
    return f"Evaluated at {where}; the weights of this model are those of step {evaluation.weights_step}."


def _code(text: str) -> str:
    return f"`{text}`"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"


def _change(dense: float | None, sparse: float) -> str:
    return "" if not dense else f"{(sparse - dense) / abs(dense):+.2%}"


def _sparsity(measured: Measured) -> str:
    report = measured.report
    kinds: dict[str, list[LayerRow]] = {}
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


def _configuration(config: SparseConfig | None) -> str:
    if config is None:
        return ""
    versions = f"hf_autosparse {__version__}, transformers {transformers.__version__}, torch {torch.__version__}"
    return (
        f"## Sparse training\n\nThe `{type(config).__name__}` of the run ({_linked(method_of(config).reference)}):\n\n"
        f"```yaml\n{yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True).strip()}\n```\n\n"
        f"Written by {versions}, Python {platform.python_version()}."
    )


def _linked(reference: str) -> str:
    """A reference with its arXiv number as a link."""
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", reference)


def loading_section(loading: Loading) -> str:
    """How to load the model, as Markdown."""
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

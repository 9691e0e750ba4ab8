"""Figures to look at: sparsity over training, sparsity by layer, inference FLOPs by layer. Needs the extra `plots`.

Each comes in two forms: `..._figure(data)` returns matplotlib's Figure, for notebooks and your own changes, and
`plot_...(data, path)` writes it as .png, .svg or .pdf and returns the path.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..reports.layer_names import elide
from ..reports.trajectory import Trajectory
from ..utils.io import StrPath
from .lanes import BAR, Lane, Lanes, make_lanes
from .style import (
    COLOURS,
    DASHES,
    INK,
    MUTED,
    SMALL,
    TEXT,
    TITLE,
    TRACK,
    Artist,
    Axes,
    Figure,
    FuncFormatter,
    Line2D,
    MaxNLocator,
    Patch,
    PercentFormatter,
    count,
    headline,
    legend_below,
    new_figure,
    percent,
    plain,
    save,
    style_axes,
    target,
)


class SparseRow(Protocol):
    """What is read of a layer to draw its sparsity. `shape`: of the weight; `sparsity`: fraction of zeros in [0, 1]."""

    name: str
    shape: tuple[int, ...]
    sparsity: float


class CostRow(Protocol):
    """What is read of a layer to draw its FLOPs. `macs`: for one example when dense; `density`: 1 - sparsity."""

    name: str
    macs: int
    density: float


# ---- Over training ----


def plot_training(runs: Trajectory | Mapping[str, Trajectory], path: StrPath) -> Path:
    """Draw `training_figure(runs)` into a file.

    Raises:
        ValueError: the path does not end in .png, .svg or .pdf; or as `training_figure`.
    """
    path = target(path)
    return save(training_figure(runs), path)


def training_figure(runs: Trajectory | Mapping[str, Trajectory]) -> Figure:
    """Sparsity and, below it, alpha over the epochs of one run or several (arXiv 2304.06941, Figure 1b).

    The line is the sparsity of all sparse layers together, or the mean over them where the trajectory does not know
    their sizes. Bands show how far the layers spread: of a single run the middle half of them and all, of two runs the
    middle half. The lower part is left out for methods that have no alpha.

    Args:
        runs: a trajectory, or label -> trajectory.

    Raises:
        ValueError: no run, or more than can be told apart.
    """
    runs = {"": runs} if isinstance(runs, Trajectory) else dict(runs)
    _check_number(runs, "runs")
    annealed = any(moment.alpha is not None for run in runs.values() for moment in run.moments)
    figure = new_figure((4.5 if annealed else 3.4) + 0.18 * len(runs))
    parts = list(figure.subplots(1 + annealed, squeeze=False, sharex=True, height_ratios=[2, 1][: 1 + annealed]).flat)
    handles: list[Artist] = []
    for (label, run), colour, dash in zip(runs.items(), COLOURS, DASHES, strict=False):
        look: dict[str, Any] = {
            "color": colour,
            "linestyle": dash,
            "linewidth": 2,
            "marker": "o" if len(run.moments) == 1 else "",
        }
        _draw_sparsity(parts[0], run, look, bands=max(0, 3 - len(runs)))
        for axes in parts[1:]:
            _draw_alpha(axes, run, look)
        handles.append(Line2D([], [], **look, label=_run_label(label, run)))
    if len(runs) < 3 and any(len(run.sparse) > 1 and run.moments for run in runs.values()):
        shade = COLOURS[0] if len(runs) == 1 else MUTED
        handles.append(Patch(facecolor=shade, alpha=0.3, label="middle half of the layers"))
        if len(runs) == 1:
            handles.append(Patch(facecolor=shade, alpha=0.12, label="all of them"))
    _finish_training(parts)
    legend_below(figure, handles, columns=3 if len(runs) == 1 else 1)
    return figure


def _draw_sparsity(axes: Axes, run: Trajectory, look: dict[str, Any], bands: int) -> None:
    if _is_empty(run):
        return
    epochs = [moment.epoch for moment in run.moments]
    layers = np.array([moment.sparsity for moment in run.moments])
    axes.plot(epochs, _total(run, layers), **look, zorder=3)
    if layers.shape[1] < 2:
        return
    lowest, low, high, highest = np.percentile(layers, [0, 25, 75, 100], axis=1)
    # A single moment has no width to fill, only an edge.
    band = {"facecolor": look["color"], "edgecolor": look["color"], "linewidth": 6 if len(epochs) == 1 else 0}
    for bottom, top, alpha in [(low, high, 0.2), (lowest, highest, 0.12)][:bands]:
        axes.fill_between(epochs, bottom, top, alpha=alpha, zorder=2, **band)


def _draw_alpha(axes: Axes, run: Trajectory, look: dict[str, Any]) -> None:
    known = [(moment.epoch, moment.alpha) for moment in run.moments if moment.alpha is not None]
    if known:  # what a moment states holds until the next one
        axes.plot(*zip(*known, strict=True), **look, drawstyle="steps-post", clip_on=False)


def _finish_training(parts: list[Axes]) -> None:
    for axes, title in zip(parts, ("Sparsity", "Alpha"), strict=False):
        style_axes(axes, grid="y")
        axes.set_title(title, loc="left", fontsize=TITLE, fontweight="bold", color=INK)
    sparsity, last = parts[0], parts[-1]
    sparsity.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    sparsity.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    last.set_xlabel("epoch", fontsize=TEXT, color=INK)
    if not sparsity.has_data():
        sparsity.set_ylim(-0.01, 1.01)
        sparsity.text(
            0.5, 0.5, "nothing recorded yet", transform=sparsity.transAxes, ha="center", color=MUTED, fontsize=TEXT
        )
        return
    data = sparsity.dataLim
    sparsity.set_ylim(*_percent_limits(data.y0, data.y1))
    margin = 0.01 * (data.x1 - data.x0) or 0.5
    last.set_xlim(data.x0 - margin, data.x1 + margin)
    if data.x1 > data.x0:
        last.xaxis.set_major_locator(MaxNLocator(10, integer=data.x1 - data.x0 >= 3))
    else:
        last.set_xticks([data.x0], [f"{data.x0:.3g}"])
    for alpha in parts[1:]:
        alpha.set_title("share of their gradient that pruned weights get", loc="right", fontsize=SMALL, color=MUTED)
        alpha.set_ylim(0, 1.08 * max(alpha.dataLim.y1, 0.01))
        alpha.yaxis.set_major_locator(MaxNLocator(4))


def _percent_limits(lowest: float, highest: float) -> tuple[float, float]:
    """Whole tens around the data, at least 20 percentage points: a flat line shall look flat."""
    low, high = math.floor(10 * lowest + 1e-9), math.ceil(10 * highest - 1e-9)
    while high - low < 2:
        if low > 0 and (high == 10 or 10 * lowest - low < high - 10 * highest):
            low -= 1
        else:
            high += 1
    return low / 10 - 0.01, high / 10 + 0.01


def _total(run: Trajectory, layers: np.ndarray) -> np.ndarray:
    """Shape (moments,): the sparsity of all layers together, from that of each, (moments, layers)."""
    return np.average(layers, axis=1, weights=_sizes(run))


def _sizes(run: Trajectory) -> list[int] | None:
    known = all(name in run.layers for name in run.sparse)
    return [run.layers[name].weights for name in run.sparse] if known else None


def _is_empty(run: Trajectory) -> bool:
    return not (run.moments and run.sparse)


def _run_label(label: str, run: Trajectory) -> str:
    together = _sizes(run) is not None or len(run.sparse) < 2
    parts = [plain(elide(label, 60)), "" if together else "mean over the sparse layers"]
    text = ", ".join(filter(None, parts)) or "all sparse layers"
    if _is_empty(run):
        return f"{text}: nothing recorded yet"
    last = run.moments[-1]
    return f"{text}: {percent(_total(run, np.array([last.sparsity]))[0])} at epoch {last.epoch:.3g}"


# ---- By layer ----


def plot_layers(report: Any, path: StrPath, *, title: str | None = None) -> Path:
    """Draw `layers_figure(report, title=title)` into a file.

    Raises:
        ValueError: the path does not end in .png, .svg or .pdf; or as `layers_figure`.
    """
    path = target(path)
    return save(layers_figure(report, title=title), path)


def layers_figure(report: Any, *, title: str | None = None) -> Figure:
    """The sparsity of every layer, as bars in tracks whose full length is 100 %.

    Few layers have a lane each. In a model with many repeated blocks, each kind of layer has one, with a bar for each
    block; the numbers beside it are of the whole kind.

    Args:
        report: a `SparsityReport`, or anything whose `layers` are rows with `name`, `shape` and `sparsity`; or such
            rows themselves.

    Raises:
        ValueError: there is no layer.
    """
    rows: list[SparseRow] = list(getattr(report, "layers", report))
    if not rows:
        raise ValueError("report has no sparse layer: there is nothing to draw")
    sizes = {row.name: math.prod(row.shape) for row in rows}
    sparsity = {row.name: row.sparsity for row in rows}
    lanes = make_lanes(list(sizes), height=lambda names: 0.42)
    _draw_bars(lanes, dict.fromkeys(sizes, 1.0), TRACK)
    _draw_bars(lanes, sparsity, COLOURS[0])
    for axes, _ in lanes.columns:
        if not lanes.grouped:
            axes.set_xlim(0, 1)
            axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))

    def size(names: Iterable[str]) -> int:
        return max(1, sum(sizes[name] for name in names))

    def zeros(names: Iterable[str]) -> float:
        return sum(sparsity[name] * sizes[name] for name in names) / size(names)

    lanes.notes(8, "sparsity", lambda lane: percent(zeros(lane.names)), INK)
    lanes.notes(54, "of weights", lambda lane: percent(size(lane.names) / size(sizes)), MUTED)
    subtitle = f"{percent(zeros(sizes))} of {size(sizes):,} weights in {len(rows)} sparse layer{'s' * (len(rows) > 1)}"
    if lanes.grouped:
        subtitle += "; each bar is a layer, its full height 100 %"
    headline(lanes.figure, plain(elide(title, 70)) if title else "Sparsity by layer", subtitle)
    return lanes.figure


def _draw_bars(lanes: Lanes, fractions: Mapping[str, float], colour: str) -> None:
    """Bars as long as these fractions of their tracks."""
    for axes, part in lanes.columns:
        bars = [
            (lane, slot, fractions[name]) for lane in part for slot, name in enumerate(lane.slots) if name is not None
        ]
        if lanes.grouped:
            heights = [-BAR * lane.height * fraction for lane, _, fraction in bars]
            bottoms = [lane.bottom for lane, _, _ in bars]
            axes.bar([slot for _, slot, _ in bars], heights, 0.84, bottoms, color=colour, linewidth=0)
        else:
            lengths = [fraction for _, _, fraction in bars]
            axes.barh([lane.y for lane in part], lengths, BAR * part[0].height, color=colour, linewidth=0)


# ---- Inference FLOPs ----


def plot_inference_flops(models: Mapping[str, Any], path: StrPath) -> Path:
    """Draw `inference_flops_figure(models)` into a file.

    Raises:
        ValueError: the path does not end in .png, .svg or .pdf; or as `inference_flops_figure`.
    """
    path = target(path)
    return save(inference_flops_figure(models), path)


def inference_flops_figure(models: Mapping[str, Any]) -> Figure:
    """Theoretical multiply-accumulates of each layer in several models, before those of the dense one (Figure 1a).

    Lanes as in `layers_figure`. What is drawn has to be computed; it is no measured time.

    Args:
        models: label -> a `FlopsReport`, or anything whose `layers` are rows with `name`, `macs` and `density`; or such
            rows themselves; or a `Trajectory`, of which the last moment counts. All with the same layers and MACs.

    Raises:
        ValueError: no model, or more than can be told apart; one has no MACs; layers or MACs differ between them.
    """
    _check_number(models, "models")
    costs = {label: _costs(label, model) for label, model in models.items()}
    macs = _common_macs(costs)
    largest, dense = max(macs.values()), sum(macs.values())
    inches = _inches_per_mac(list(macs.values()))
    lanes = make_lanes(
        list(macs),
        height=lambda names: max(0.24, inches * max(macs[name] for name in names)),
        below=0.2 * (len(costs) + 1),
    )
    for axes, part in lanes.columns:
        if lanes.grouped:
            for lane in part:
                _draw_lane_costs(axes, lane, macs, costs, inches)
        else:
            _draw_layer_costs(axes, part, macs, costs)
    handles: list[Artist] = [Patch(facecolor=TRACK, label=f"dense: {count(dense)} MACs")]
    for (label, rows), colour, dash in zip(costs.items(), COLOURS, DASHES, strict=False):
        kept = sum(row.kept for row in rows.values())
        text = f"{plain(elide(label, 60))}: {count(kept)} MACs, {percent(kept / dense)} of dense"
        if lanes.grouped:
            handles.append(Line2D([], [], color=colour, linestyle=dash, linewidth=1.6, label=text))
        else:
            handles.append(Patch(facecolor=colour, label=text))
    subtitle = "multiply-accumulates (MACs) with weights that are not zero, for one example"
    if lanes.grouped:
        lanes.notes(8, "of dense MACs", lambda lane: percent(sum(macs[name] for name in lane.names) / dense), MUTED)
        subtitle += f"; the tallest is {count(largest)}"
    headline(lanes.figure, "Theoretical inference FLOPs by layer", subtitle)
    legend_below(lanes.figure, handles)
    return lanes.figure


def _inches_per_mac(macs: list[float]) -> float:
    """A scale for lanes: the tallest has 0.75 inches, or up to 2.5 where most would be too flat to read (one output
    layer above many small ones)."""
    return min(2.5 / max(macs), max(0.75 / max(macs), 0.12 / float(np.median(macs))))


class _Cost(NamedTuple):
    macs: float
    kept: float  # MACs with weights that are not zero


def _costs(label: str, model: Any) -> dict[str, _Cost]:
    if not isinstance(model, Trajectory):
        rows: Iterable[CostRow] = getattr(model, "layers", model)
        costs = {row.name: _Cost(row.macs, row.macs * row.density) for row in rows}
    elif model.moments:
        sparsity = dict(zip(model.sparse, model.moments[-1].sparsity, strict=True))
        costs = {n: _Cost(cost.macs, cost.macs * (1 - sparsity.get(n, 0.0))) for n, cost in model.layers.items()}
    else:
        costs = {}
    if not any(cost.macs for cost in costs.values()):
        raise ValueError(f"models[{label!r}] has no MACs to draw: pass flops(model, inputs), which counts them")
    return {name: cost for name, cost in costs.items() if cost.macs}


def _common_macs(costs: dict[str, dict[str, _Cost]]) -> dict[str, float]:
    (first, reference), *others = costs.items()
    for label, rows in others:
        if different := rows.keys() ^ reference.keys():
            raise ValueError(
                f"models {first!r} and {label!r} have different layers, such as {min(different)}: draw them apart"
            )
        for name, row in rows.items():
            if row.macs != reference[name].macs:
                raise ValueError(
                    f"layer {name} has {reference[name].macs:,} MACs in {first!r} and {row.macs:,} in {label!r}: count"
                    " them with inputs of the same shape"
                )
    return {name: row.macs for name, row in reference.items()}


def _draw_layer_costs(
    axes: Axes, lanes: list[Lane], macs: dict[str, float], costs: dict[str, dict[str, _Cost]]
) -> None:
    y, height = np.array([lane.y for lane in lanes]), BAR * lanes[0].height
    names = [lane.names[0] for lane in lanes]
    axes.barh(y, [macs[name] for name in names], height, color=TRACK, linewidth=0)
    thickness = height / len(costs)
    for i, (rows, colour) in enumerate(zip(costs.values(), COLOURS, strict=False)):
        middle = y - height / 2 + (i + 0.5) * thickness
        axes.barh(middle, [rows[name].kept for name in names], 0.86 * thickness, color=colour, linewidth=0)
    axes.set_xlim(0, 1.02 * max(macs.values()))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: count(x)))
    axes.set_xlabel("MACs", fontsize=TEXT, color=INK)


def _draw_lane_costs(
    axes: Axes, lane: Lane, macs: dict[str, float], costs: dict[str, dict[str, _Cost]], scale: float
) -> None:
    """`scale`: inches a MAC."""
    slots = {slot: name for slot, name in enumerate(lane.slots) if name is not None}
    heights = [-BAR * scale * macs[name] for name in slots.values()]
    axes.bar(list(slots), heights, 1.0, lane.bottom, color=TRACK, linewidth=0)
    edges = np.arange(len(lane.slots) + 1) - 0.5
    for rows, colour, dash in zip(costs.values(), COLOURS, DASHES, strict=False):
        kept = np.array([np.nan if name is None else rows[name].kept for name in lane.slots])
        line = lane.bottom - BAR * scale * kept
        axes.stairs(line, edges, baseline=None, color=colour, linestyle=dash, linewidth=1.6)


def _check_number(models: Mapping[str, Any], argument: str) -> None:
    if not 1 <= len(models) <= len(COLOURS):
        raise ValueError(f"{argument} has {len(models)} entries: 1 to {len(COLOURS)} can be told apart in one figure")

"""Draws what sparse_matmul.py measured, into docs/images: speed-up over sparsity, a panel for each number of tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from benchmarks.measuring import path_of
from hf_autosparse.plots.style import (
    COLOURS,
    DASHES,
    INK,
    MUTED,
    SMALL,
    TEXT,
    TRACK,
    Figure,
    FuncFormatter,
    Line2D,
    PercentFormatter,
    headline,
    legend_below,
    new_figure,
    save,
    style_axes,
)

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
RIVALS_SHAPE = [2048, 512]
Panel = tuple[int, str]  # tokens, where the weights come from
RIVALS_PANELS: list[Panel] = [
    (1, "memory"),
    (4, "memory"),
    (16, "memory"),
    (64, "cache"),
    (256, "cache"),
    (1024, "cache"),
]
SHAPES_PANELS: list[Panel] = [
    (1, "memory"),
    (1, "cache"),
    (16, "memory"),
    (64, "cache"),
    (256, "cache"),
    (1024, "cache"),
]
OWN = {"color": COLOURS[0], "linewidth": 2.2, "marker": "o", "markersize": 3.5}
OTHERS = {  # sparse ones in warm colours, dense runtimes in dark ones, int8 in green ones
    "oneMKL CSR": {"color": COLOURS[3], "linestyle": DASHES[0]},
    "scipy CSR": {"color": COLOURS[3], "linestyle": DASHES[2]},
    "torch CSR": {"color": COLOURS[1], "linestyle": DASHES[1]},
    "torch int8": {"color": COLOURS[5], "linestyle": DASHES[1]},
    "ONNX Runtime int8": {"color": COLOURS[5], "linestyle": DASHES[0]},
    "ONNX Runtime": {"color": COLOURS[2], "linestyle": DASHES[0]},
    "OpenVINO": {"color": COLOURS[2], "linestyle": DASHES[2]},
    "torch bf16": {"color": COLOURS[4], "linestyle": DASHES[3]},
}
LIMIT = {"color": MUTED, "linestyle": DASHES[3], "linewidth": 1.2}

Crossover = Callable[[list[tuple[float, float]]], float | None]


def draw_all(name: str, where: dict[str, object], crossover: Crossover) -> None:
    """`where`: from `measuring.device`."""
    content = json.loads(path_of(name, where).read_text())
    threads, isa = where["threads"], where["kernels"]
    machine = f"{content['device']['processor']}, {isa}, {threads} thread{'s' * (threads > 1)}, float32"
    results = content["results"]
    print(save(_rivals(results, machine, crossover), IMAGES / f"{name}_rivals.png"))
    print(save(_shapes(results, machine, crossover), IMAGES / f"{name}_shapes.png"))


def _rivals(results: list[dict], machine: str, crossover: Crossover) -> Figure:
    figure, panels = _panels(RIVALS_PANELS)
    drawn = {}
    for panel, axes in panels.items():
        rows = _select(results, panel, RIVALS_SHAPE)
        names = rows[0]["contestants"].keys()
        for name, style in OTHERS.items():
            if name in names:
                points = [(row["sparsity"], row["contestants"][name]["speedup"]) for row in rows]
                drawn[name] = axes.plot(*zip(*points, strict=True), linewidth=1.1, **style)[0]
        _limit(axes, rows)
        points = _own(rows)
        axes.plot(*zip(*points, strict=True), **OWN, zorder=5)
        _mark(axes, crossover(points), COLOURS[0])
    headline(figure, f"A weight of {'x'.join(map(str, RIVALS_SHAPE))} with zeros: speed-up over dense torch", machine)
    handles = [Line2D([], [], label="hf_autosparse", **OWN), Line2D([], [], label="limit of this machine", **LIMIT)]
    for name, line in drawn.items():
        line.set_label(name)
        handles.append(line)
    legend_below(figure, handles, columns=3)
    return figure


def _shapes(results: list[dict], machine: str, crossover: Crossover) -> Figure:
    figure, panels = _panels(SHAPES_PANELS)
    shapes = list(dict.fromkeys(tuple(row["weight"]) for row in results))
    for panel, axes in panels.items():
        for shape, colour, dash in zip(shapes, COLOURS, DASHES, strict=False):
            rows = _select(results, panel, list(shape))
            points = _own(rows)
            axes.plot(*zip(*points, strict=True), color=colour, linestyle=dash, linewidth=1.6)
            limit = [(row["sparsity"], row["limit_speedup"]) for row in rows]
            axes.plot(*zip(*limit, strict=True), color=colour, linestyle=dash, linewidth=0.7, alpha=0.55)
            _mark(axes, crossover(points), colour)
    headline(figure, "hf_autosparse: speed-up over dense torch; thin lines: the machine's limit", machine)
    handles = [
        Line2D([], [], color=colour, linestyle=dash, label="x".join(map(str, shape)))
        for shape, colour, dash in zip(shapes, COLOURS, DASHES, strict=False)
    ]
    legend_below(figure, handles, columns=len(handles))
    return figure


def _panels(wanted: list[Panel]):
    """A figure and its axes by panel, three a row."""
    figure = new_figure(height=5.8)
    grid = figure.subplots(-(-len(wanted) // 3), 3, sharex=True, sharey=True, squeeze=False)
    panels = dict(zip(wanted, grid.flat, strict=True))
    for (tokens, source), axes in panels.items():
        style_axes(axes, grid="y")
        axes.set_yscale("log", base=2)
        axes.set_ylim(0.25, 64)
        axes.set_xticks([0.5, 0.6, 0.7, 0.8, 0.9])
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=""))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
        axes.axhline(1, color=INK, linewidth=0.9)
        axes.set_title(
            f"{tokens:,} token{'s' * (tokens > 1)}, weights from {source}", loc="left", fontsize=TEXT, color=INK
        )
    for axes in grid[-1]:
        axes.set_xlabel("zeros, %", fontsize=SMALL, color=MUTED)
    return figure, panels


def _select(results: list[dict], panel: Panel, shape: list[int]) -> list[dict]:
    rows = [row for row in results if (row["tokens"], row["from"]) == panel and row["weight"] == shape]
    return sorted(rows, key=lambda row: row["sparsity"])


def _own(rows: list[dict]) -> list[tuple[float, float]]:
    return [(row["sparsity"], row["contestants"]["hf_autosparse"]["speedup"]) for row in rows]


def _limit(axes, rows: list[dict]) -> None:
    sparsities, limits = [row["sparsity"] for row in rows], [row["limit_speedup"] for row in rows]
    axes.plot(sparsities, limits, **LIMIT)
    axes.fill_between(sparsities, limits, 64, color=TRACK, alpha=0.6, linewidth=0)


def _mark(axes, sparsity: float | None, colour: str) -> None:
    """Where the speed-up passes 1."""
    if sparsity is not None:
        axes.plot([sparsity], [1], marker="D", markersize=5, color=colour, markeredgecolor="white", zorder=6)
        axes.annotate(
            f"{sparsity:.0%}", (sparsity, 1), (0, -11), textcoords="offset points", fontsize=SMALL, color=colour
        )

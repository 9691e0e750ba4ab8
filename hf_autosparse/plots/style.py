"""The common look of the plots, and how they reach the disk. Needs matplotlib, the extra `plots`.

The one place that imports matplotlib. Everything is set on the objects themselves: no pyplot, and no change to
matplotlib's global settings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

try:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.text import Annotation
    from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator, PercentFormatter
except ModuleNotFoundError as error:
    if error.name != "matplotlib":
        raise
    raise ModuleNotFoundError(
        'plots need matplotlib, which is not installed: pip install "hf-autosparse[plots]"', name="matplotlib"
    ) from error

from ..utils.io import StrPath, replacing

__all__ = [  # for the plots
    "Annotation",
    "Artist",
    "Axes",
    "Figure",
    "FuncFormatter",
    "Line2D",
    "MaxNLocator",
    "Patch",
    "PercentFormatter",
]

WIDTH = 7.5  # inches
INK, MUTED, TRACK, GRID = "#222222", "#5c5c5c", "#e2e2e2", "#d9d9d9"
# Okabe and Ito (2008), told apart in all common forms of colour blindness, in an order that alternates dark and light;
# in grey print the dashes tell them apart.
COLOURS = ("#0072b2", "#e69f00", "#222222", "#d55e00", "#56b4e9", "#009e73")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (5, 1.5, 1.5, 1.5)), (0, (8, 2)), (0, (3, 3)))
TITLE, TEXT, SMALL = 11.0, 9.0, 8.0  # points
SMALL_CHARACTER = 0.068  # inches: about the width of a character of the size SMALL
SUFFIXES = (".png", ".svg", ".pdf")

_engineering = EngFormatter()


def new_figure(height: float, width: float = WIDTH, dpi: int = 160) -> Figure:
    """An empty figure, in inches, whose layout makes room for every label."""
    return Figure(figsize=(width, height), dpi=dpi, facecolor="white", layout="constrained")


def style_axes(axes: Axes, *, grid: Literal["x", "y"]) -> None:
    """Quiet axes: no box, faint grid lines across `grid` ("x" or "y"), behind the data."""
    axes.set_facecolor("white")
    axes.set_axisbelow(True)
    axes.grid(visible=False)
    axes.grid(visible=True, axis=grid, color=GRID, linewidth=0.7)
    axes.tick_params(color=MUTED, labelcolor=INK, labelsize=SMALL, length=3, width=0.7)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set(color=MUTED, linewidth=0.7)


def headline(figure: Figure, title: str, subtitle: str) -> None:
    """A title and a line below it in the figure's top left corner."""
    inch = 1 / figure.get_figheight()
    left = 0.1 / figure.get_figwidth()
    figure.text(left, 1 - 0.08 * inch, title, va="top", fontsize=TITLE, fontweight="bold", color=INK)
    figure.text(left, 1 - 0.3 * inch, subtitle, va="top", fontsize=TEXT, color=MUTED)
    layout: Any = figure.get_layout_engine()  # constrained, see `new_figure`
    layout.set(rect=(0, 0, 1, 1 - 0.5 * inch))


def legend_below(figure: Figure, handles: Sequence[Artist], columns: int = 1) -> None:
    figure.legend(
        handles=handles,
        loc="outside lower left",
        ncols=columns,
        frameon=False,
        fontsize=SMALL,
        labelcolor=INK,
        handlelength=2.8,
    )


def plain(text: str) -> str:
    """Text as it stands, not read as a formula between dollar signs."""
    return text.replace("$", r"\$")


def percent(fraction: float) -> str:
    """62.6 %. What is rounded to 0 % or 100 % without being so is written as < 0.1 % or > 99.9 %."""
    if fraction in (0, 1):
        return f"{100 * fraction:.0f} %"
    if not 0.0005 <= fraction < 0.9995:
        return "< 0.1 %" if fraction < 0.5 else "> 99.9 %"
    return f"{100 * fraction:.1f} %"


def count(number: float) -> str:
    """4.09 G: three digits and the unit's prefix."""
    if number == 0:
        return "0"
    return _engineering(round(number, 2 - math.floor(math.log10(number))))


def target(path: StrPath) -> Path:
    """The path, if a figure can be written to it.

    Raises:
        ValueError: its suffix names no format that is written.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"path = {str(path)!r}: the name of a plot ends in {', '.join(SUFFIXES)}")
    return path


def save(figure: Figure, path: Path) -> Path:
    """Write the figure in the format of the path's suffix, whole or not at all; missing folders are made."""
    with replacing(path) as draft:
        figure.savefig(draft, format=path.suffix[1:].lower())
    return path

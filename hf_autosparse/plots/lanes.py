"""Lanes: horizontal strips below each other, each with one layer or, in a model of many blocks, one kind of layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..reports.layer_names import group_blocks, short_names
from .style import INK, SMALL, SMALL_CHARACTER, TEXT, WIDTH, Annotation, Axes, Figure, new_figure, plain, style_axes

FEW = 24  # layers that have a lane each in any case
LENGTH = 50  # lanes below each other, if each has one layer
BAR = 0.78  # of a lane's height; the rest is space between lanes
MARGIN = 1.0  # inches for the headline and the labels of the x axis
TOP = 0.2  # inches for the headings of the notes


@dataclass(frozen=True)
class Lane:
    """One strip. `slots`: its layers' names by block, None where there is none. `y`, `height`: inches, downwards."""

    label: str
    slots: list[str | None]
    y: float
    height: float

    @property
    def names(self) -> list[str]:
        return [name for name in self.slots if name is not None]

    @property
    def bottom(self) -> float:
        return self.y + BAR * self.height / 2


@dataclass(frozen=True)
class Lanes:
    """The lanes of a figure, in one or several columns of axes. `grouped`: whether a lane holds a kind of layer."""

    figure: Figure
    columns: list[tuple[Axes, list[Lane]]]
    grouped: bool

    def notes(self, offset: float, heading: str, text: Callable[[Lane], str], colour: str) -> None:
        """A column of text to the right, `offset` points from the axes."""
        for axes, lanes in self.columns:
            _note(axes, TOP / 2, offset, heading, colour)
            for lane in lanes:  # narrower than the heading, which has made room for them
                _note(axes, lane.y, offset, text(lane), colour).set_in_layout(False)


def _note(axes: Axes, y: float, offset: float, text: str, colour: str) -> Annotation:
    return axes.annotate(
        text,
        (1, y),
        (offset, 0),
        xycoords=axes.get_yaxis_transform(),
        textcoords="offset points",
        va="center_baseline",
        fontsize=SMALL,
        color=colour,
        annotation_clip=False,
    )


def make_lanes(names: Sequence[str], height: Callable[[list[str]], float], below: float = 0.0) -> Lanes:
    """Axes with a lane for each layer; or for each kind, if that makes at most half as many of more than 24.

    Args:
        names: of the layers, in order.
        height: of the lane of a kind with these layers, in inches.
        below: inches to leave at the bottom of the figure for a legend.
    """
    kinds = group_blocks(names)
    grouped = len(names) > FEW and 2 * len(kinds) <= len(names)
    if not grouped:
        return _single(names, below)
    blocks = sorted({block for layers in kinds.values() for block in layers if block})
    labels = short_names(list(kinds), limit=48)
    lanes, y = [], TOP
    for label, layers in zip(labels, kinds.values(), strict=True):
        # A layer outside the blocks is drawn in the first slot.
        slots = [layers.get(block, layers.get(()) if block == blocks[0] else None) for block in blocks]
        lane = Lane(label, slots, y + height(list(layers.values())) / 2, height(list(layers.values())))
        lanes.append(lane)
        y += lane.height
    figure = new_figure(MARGIN + 0.2 + y + below)
    axes = figure.subplots()
    _style(axes, lanes, y)
    room = WIDTH - 1.6 - SMALL_CHARACTER * max(map(len, labels))
    _label_blocks(axes, blocks, room)
    return Lanes(figure, [(axes, lanes)], grouped)


def _single(names: Sequence[str], below: float) -> Lanes:
    pitch, count = 0.2, math.ceil(len(names) / LENGTH)
    length = math.ceil(len(names) / count)
    labels = short_names(names, limit=48 if count == 1 else 36)
    y = [TOP + pitch * (i % length + 0.5) for i in range(len(names))]
    lanes = [Lane(label, [name], y, pitch) for label, name, y in zip(labels, names, y, strict=True)]
    end = TOP + pitch * length
    width, dpi = (WIDTH, 160) if count == 1 else (5.5 * count, 110)
    figure = new_figure(MARGIN + end + below, width, dpi)
    parts = [lanes[i : i + length] for i in range(0, len(lanes), length)]
    columns = list(zip(figure.subplots(1, count, squeeze=False).flat, parts, strict=True))
    for axes, part in columns:
        _style(axes, part, end)
    return Lanes(figure, columns, grouped=False)


def _style(axes: Axes, lanes: list[Lane], end: float) -> None:
    style_axes(axes, grid="x")
    axes.set_ylim(end, TOP)
    axes.set_yticks([lane.y for lane in lanes], [plain(lane.label) for lane in lanes])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _label_blocks(axes: Axes, blocks: list[tuple[int, ...]], room: float) -> None:
    """As many as fit into `room` inches: a block's last number, and below it the ones before, where they are new."""
    axes.grid(visible=False)
    axes.set_xlim(-0.5, len(blocks) - 0.5)
    width = max(len(str(block[-1])) for block in blocks) + 1
    step = math.ceil(SMALL_CHARACTER * width * len(blocks) / room)
    nested = any(len(block) > 1 for block in blocks)
    labels, before = [], None
    for *outer, last in blocks[::step]:
        second = ".".join(map(str, outer)) if outer != before else ""
        labels.append(f"{last}\n{second}" if nested else str(last))
        before = outer
    axes.set_xticks(range(0, len(blocks), step), labels)
    which = "the last * of the names; below, the ones before" if nested else "the * of the names"
    axes.set_xlabel(f"block ({which})", fontsize=TEXT, color=INK)

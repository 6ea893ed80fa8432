"""A picture of tables side by side: a colour for each number, and the number in it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from lmx.report.plots import GREY, INK, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = np.ndarray
PALE = "#eaeef2"


class Heatmap(NamedTuple):
    """One table, [rows, columns].

    Attributes:
      title: what its numbers are.
      values: none of them below 0.
      doubtful: which are painted grey, and do not stretch the colours of the others.
      better: which end is painted light.
    """

    title: str
    values: Array
    doubtful: Array
    better: Literal["high", "low"]


def plot_heatmaps(
    maps: Sequence[Heatmap],
    png_path: str | os.PathLike[str],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
) -> None:
    """Draws tables with the same rows and columns beside each other.

    Colours are of the logarithm, so a factor of two looks alike everywhere.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = (1.8 + 0.8 * len(columns) * len(maps), 1.7 + 0.24 * len(rows))
    figure = Figure(figsize=size, dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(maps), squeeze=False)[0]
    for number, (axes, table) in enumerate(zip(panels, maps, strict=True)):
        _draw(axes, table)
        names = rows if number == 0 else [""] * len(rows)
        axes.set_xticks(range(len(columns)), columns, rotation=35, ha="right")
        axes.set_yticks(range(len(rows)), names)
        for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
            label.set(fontsize=8, color=INK, parse_math=False)
    style: dict[str, Any] = {"fontsize": 10, "color": INK, "parse_math": False}
    figure.suptitle(title, x=0.01, ha="left", **style)
    save_figure(figure, Path(png_path))


def _draw(axes: Axes, table: Heatmap) -> None:
    """Paints one table, its numbers in ink that is read on their colour."""
    shade = np.ma.masked_where(table.doubtful, np.log(np.maximum(table.values, 1e-3)))
    if table.better == "low":
        shade = -shade
    axes.set_facecolor(PALE)
    axes.imshow(shade, cmap="viridis", aspect="auto")
    middle = (shade.min() + shade.max()) / 2 if shade.count() else 0.0
    for (row, column), value in np.ndenumerate(table.values):
        ink = "black" if shade[row, column] > middle else "white"
        if table.doubtful[row, column]:
            ink = GREY
        place: dict[str, Any] = {"ha": "center", "va": "center", "color": ink}
        axes.text(column, row, f"{value:.2f}", fontsize=7, **place)
    axes.set_title(table.title, fontsize=9, color=INK)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)

"""The picture of a run: loss.png, drawn from metrics.jsonl.

It uses Matplotlib's object interface with the Agg canvas: no display, no pyplot, no
global state. It computes nothing but a smoothed curve for the eye.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from lmx.core.errors import DataError, StorageError
from lmx.training.metrics import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GREY, BLUE, ORANGE = "#24292f", "#8c959f", "#1f6feb", "#d9580d"
LOWER_PANELS = (  # the first of these that was recorded
    ("train/lr", "learning rate", 1.0),
    ("perf/tokens_per_sec", "k tokens/s", 1e-3),
)

Series = tuple[list[int], list[float]]


def plot_losses(
    metrics_path: str | os.PathLike[str],
    png_path: str | os.PathLike[str],
    *,
    title: str = "",
) -> None:
    """Draws training and validation loss over steps, and the learning rate below.

    `metrics_path` is a metrics.jsonl; `png_path` is replaced atomically. Values that
    are not finite are left out and counted. Raises DataError if no loss was recorded.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows = list(read_metrics(metrics_path))
    curves = _curves(rows)
    if not any(tag.endswith("/loss") for tag in curves):
        raise DataError(f"{metrics_path} holds no loss; train for a step first")
    panel = next((p for p in LOWER_PANELS if p[0] in curves), None)
    figure = Figure(figsize=(9, 5.6 if panel else 4.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    if panel:
        ratios = {"height_ratios": [3.4, 1]}
        losses, lower = figure.subplots(2, 1, sharex=True, gridspec_kw=ratios)
        _draw_panel(lower, *curves[panel[0]], label=panel[1], scale=panel[2])
    else:
        losses = lower = figure.subplots()
    _draw_losses(losses, curves, bad=_count_bad(rows))
    style: dict[str, Any] = {"color": INK, "fontsize": 12, "pad": 30}
    losses.set_title(title or "Loss", loc="left", parse_math=False, **style)
    lower.set_xlabel("step")
    lower.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
    places: dict[str, Any] = {"steps": (1, 2, 2.5, 5, 10), "min_n_ticks": 1}
    lower.xaxis.set_major_locator(MaxNLocator(8, integer=True, **places))
    lower.set_xlim(0, 1.02 * max(1, *(row["step"] for row in rows)))
    save_figure(figure, Path(png_path))


def smooth(values: Sequence[float], *, window: int) -> list[float]:
    """Returns `values` after a running median and a running mean of `window` entries.

    Both are centred, so the curve does not lag; the median drops lone spikes.
    """
    half = window // 2
    smoothed = np.asarray(values, np.float64)
    for average in (np.median, np.mean):
        padded = np.pad(smoothed, half, mode="edge")
        smoothed = average(sliding_window_view(padded, 2 * half + 1), axis=-1)
    return smoothed.tolist()


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as a PNG, whole or not at all; raises a `StorageError`."""
    partial = path.with_name(path.name + ".partial")
    try:
        figure.savefig(partial, format="png")
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}; free some space or make "
            "the folder writable"
        ) from error


def _curves(rows: list[dict[str, Any]]) -> dict[str, Series]:
    """Returns steps and finite values of every tag, in order of step."""
    curves: dict[str, Series] = {}
    for row in sorted(rows, key=lambda row: row["step"]):
        for tag, value in row.items():
            if "/" in tag and isinstance(value, int | float) and math.isfinite(value):
                steps, values = curves.setdefault(tag, ([], []))
                steps.append(row["step"])
                values.append(value)
    return curves


def _count_bad(rows: list[dict[str, Any]]) -> int:
    return sum(not math.isfinite(row.get("train/loss", 0.0)) for row in rows)


def _draw_losses(axes: Axes, curves: dict[str, Series], *, bad: int) -> None:
    top = []
    steps, values = curves.get("train/loss", ([], []))
    if values:
        smoothed = smooth(values, window=min(101, len(values) // 50))
        name = f"training  {smoothed[-1]:.3f}"
        if len(values) > 50:
            _line(axes, steps, values, color=BLUE, alpha=0.25, linewidth=0.8)
            name += "  (smoothed)"
        _line(axes, steps, smoothed, color=BLUE, linewidth=1.8, label=name)
        top += values
    sets = [tag for tag in curves if tag.startswith("eval/") and tag.endswith("/loss")]
    for number, tag in enumerate(sorted(sets)):
        steps, values = curves[tag]
        name = f"{tag[5:-5]}  {values[-1]:.3f}"
        color = ORANGE if number == 0 else f"C{number + 1}"
        style: dict[str, Any] = {
            "markersize": 4.5,
            "linewidth": 1.0,
            "markeredgecolor": "white",
        }
        axes.plot(steps, values, "o-", color=color, label=name, **style)
        top += values
    _limit(axes, top)
    axes.set_ylabel("loss (nats per token)")
    # Above the axes, where it hides no point.
    place: dict[str, Any] = {
        "loc": "lower left",
        "bbox_to_anchor": (-0.01, 1.0),
        "borderpad": 0,
    }
    axes.legend(**place, ncols=4, frameon=False, labelcolor=INK)
    if bad:
        note = f"{bad} steps with a loss that is not finite are left out"
        corner: dict[str, Any] = {
            "ha": "right",
            "va": "top",
            "transform": axes.transAxes,
        }
        axes.text(0.99, 0.98, note, color=GREY, fontsize=8, **corner)
    _style(axes)


def _draw_panel(
    axes: Axes, steps: list[int], values: list[float], *, label: str, scale: float
) -> None:
    _line(axes, steps, [scale * v for v in values], color=GREY, linewidth=1.4)
    axes.set_ylabel(label)
    axes.set_ylim(0, 1.15 * scale * max(values) or 1.0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    _style(axes)


def _limit(axes: Axes, values: list[float]) -> None:
    """Bounds the axis so that a few spikes do not flatten the rest of the curve."""
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    usual = ordered[int(0.98 * (len(ordered) - 1))]
    high = min(high, usual + 0.6 * (usual - low)) if usual > low else high
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    axes.set_ylim(low - margin, high + margin)


def _line(axes: Axes, steps: list[int], values: list[float], **style: Any) -> None:
    # A single value has no line to it.
    axes.plot(steps, values, marker="o" if len(steps) == 1 else "", **style)


def _style(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=9)
    axes.yaxis.label.set_color(INK)
    axes.xaxis.label.set_color(INK)
    axes.grid(axis="y", color="#d0d7de", linewidth=0.6)
    axes.set_axisbelow(True)

"""What `lmx eval` prints: tables of tasks, of scores and of differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmx.evaluate.comparison import Delta


def task_lines() -> list[str]:
    """Returns the table of tasks: what they ask, how they score, where data is."""
    from lmx.tasks import TASKS

    rows = [("task", "kind", "metrics", "about")]
    rows += [
        (
            task.name,
            task.request,
            ", ".join(metric.name for metric in task.metrics),
            f"{task.about} ({task.public})",
        )
        for task in TASKS.values()
    ]
    return table(rows)


def result_lines(summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns scores with their intervals, beside what needs no model."""
    rows = [("task", "metric", "score", "95 % interval", "items", "without a model")]
    notes = []
    for summary in summaries:
        name = summary["task"]
        for metric, found in summary["metrics"].items():
            simple = [
                f"{label} {number(values[metric])}"
                for label, values in summary["baselines"].items()
                if metric in values
            ]
            rows.append(
                (
                    name,
                    metric,
                    number(found["value"]),
                    f"{number(found['low'])} – {number(found['high'])}",
                    f"{summary['items']:,}",
                    ", ".join(simple),
                )
            )
            if "signature" in found:
                notes.append(f"{metric}: {found['signature']}")
            name = ""
        if summary["prompts_cut"]:
            notes.append(
                f"{summary['task']}: {summary['prompts_cut']} prompts were longer than "
                "the context and lost their beginnings"
            )
        if summary["data"]["left_out"]:
            left_out = summary["data"]["left_out"]
            notes.append(f"{summary['task']}: {left_out} records cannot be scored")
        notes.append(f"{summary['task']}: {summary['data']['rule']}")
    return [*table(rows), *dict.fromkeys(notes)]


def delta_lines(deltas: Sequence[Delta], names: Sequence[str]) -> list[str]:
    """Returns the second of two models minus the first."""
    rows = [("task", "metric", "first", "second", "delta", "95 % interval", "p", "by")]
    for delta in deltas:
        found = delta.comparison
        better = (found.delta > 0) == delta.higher
        mark = ("better" if better else "worse") if found.p_value < 0.05 else ""
        rows.append(
            (
                delta.task,
                delta.metric,
                number(delta.first),
                number(delta.second),
                f"{found.delta:+.4g}",
                f"{found.low:+.3g} – {found.high:+.3g}",
                f"{found.p_value:.2g}",
                f"{found.test}{', ' if mark else ''}{mark}",
            )
        )
    return [f"first: {names[0]}", f"second: {names[1]}", *table(rows)]


def number(value: float) -> str:
    """Returns a score in four digits."""
    return f"{value:.4g}"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns rows in columns, the first of them underlined."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return [lines[0], "─" * max(map(len, lines)), *lines[1:]]

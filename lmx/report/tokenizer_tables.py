"""What a comparison of tokenizers found: as tables, as JSON, as a picture."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lmx.evaluate.tokenizer_metrics import TokenizerMeasure
from lmx.report.heatmap import Heatmap, plot_heatmaps

Measures = Mapping[str, Mapping[str, TokenizerMeasure]]  # tokenizer → value → measure
Row = tuple[str, TokenizerMeasure, Any]  # name, on all text, what its model did

COLUMNS: dict[str, Callable[[TokenizerMeasure], str]] = {
    "vocabulary": lambda m: f"{m.vocabulary:,}",
    "bytes/token": lambda m: f"{m.bytes_per_token:.3f}",
    "tokens/word": lambda m: f"{m.fertility:.3f}",
    "used": lambda m: f"{m.used_share:.1%}",
    "unknown": lambda m: f"{m.unknown_share:.2%}",
    "part": lambda m: f"{m.partial_share:.2%}",
}
RUN_COLUMNS: dict[str, Callable[[Any], str]] = {
    "bits/byte": lambda run: f"{run.bits_per_byte:.4f}",
    "parameters": lambda run: f"{run.parameters / 1e6:.2f}M",
    "steps": lambda run: f"{run.steps:,}",
    "epochs": lambda run: f"{run.epochs:.2f}",
    "FLOPs": lambda run: f"{run.flops:.3e}",
}
# Of each value: its title, the number, how it is written.
DETAILS: tuple[tuple[str, Callable[[TokenizerMeasure], float], str], ...] = (
    ("bytes per token", lambda m: m.bytes_per_token, ".2f"),
    ("tokens per word (of unspaced scripts: per letter)", lambda m: m.fertility, ".2f"),
    ("share of the vocabulary that is used", lambda m: m.used_share, ".1%"),
    (
        "share of tokens that are unknown, or bytes of a character",
        lambda m: m.unknown_share + m.partial_share,
        ".1%",
    ),
)
UNKNOWN, DOUBTFUL = "?", 0.01  # a token that hides its text makes it look short


def summary(rows: Sequence[Row]) -> str:
    """Returns a line a tokenizer, on all of the text."""
    trained = all(run is not None for _, _, run in rows)
    lines = [["tokenizer", *COLUMNS, *(RUN_COLUMNS if trained else ())]]
    for name, measure, run in rows:
        cells = [write(measure) for write in COLUMNS.values()]
        cells[1:3] = [cell + _mark(measure) for cell in cells[1:3]]
        cells += [write(run) for write in RUN_COLUMNS.values()] if trained else []
        lines.append([name, *cells])
    doubtful = any(_mark(measure) for _, measure, _ in rows)
    note = (
        f"\n{UNKNOWN} over {DOUBTFUL:.0%} of the tokens are unknown: short, but lossy"
    )
    return _aligned(lines) + (note if doubtful else "")


def by_value(measures: Measures, values: Sequence[str], *, by: str) -> str:
    """Returns a table a number: a line a value, a column a tokenizer."""
    tables = []
    for title, number, form in DETAILS:
        lines = [[by, *measures]]
        for value in values:
            found = [parts[value] for parts in measures.values()]
            marks = [_mark(m) if form == ".2f" else "" for m in found]
            cells = [format(number(m), form) for m in found]
            lines.append([value, *map("".join, zip(cells, marks, strict=True))])
        tables.append(f"{title}\n{_aligned(lines)}")
    left_out = max(len(parts) for parts in measures.values()) - len(values)
    if left_out:
        tables.append(f"{left_out} more values of {by} with less text: see --json")
    return "\n\n".join(tables)


def as_json(rows: Sequence[Row], measures: Measures) -> dict[str, Any]:
    """Returns all numbers, of the whole text and of each value."""
    found = {}
    for name, measure, run in rows:
        entry: dict[str, Any] = {"all": _numbers(measure)}
        entry["by"] = {v: _numbers(part) for v, part in measures[name].items()}
        if run is not None:
            entry["equal_flops"] = run._asdict()
        found[name] = entry
    return {"tokenizers": found}


def plot(
    measures: Measures, values: Sequence[str], path: str | os.PathLike[str]
) -> None:
    """Draws bytes per token and tokens per word, a row a value."""
    chosen = [[parts[v] for parts in measures.values()] for v in values]
    doubtful = np.array([[bool(_mark(m)) for m in row] for row in chosen])
    maps = []
    for title, number, _ in DETAILS[:2]:
        table = np.array([[number(m) for m in row] for row in chosen])
        better: Any = "high" if number is DETAILS[0][1] else "low"
        maps.append(Heatmap(title.partition(" (")[0], table, doubtful, better))
    note = f"; grey: over {DOUBTFUL:.0%} of the tokens are unknown"
    plot_heatmaps(
        maps,
        path,
        rows=list(values),
        columns=list(measures),
        title=f"Light is shorter{note if doubtful.any() else ''}",
    )


def _mark(measure: TokenizerMeasure) -> str:
    """Returns what to write behind lengths that owe to unknown tokens."""
    return UNKNOWN if measure.unknown_share > DOUBTFUL else ""


def _numbers(measure: TokenizerMeasure) -> dict[str, Any]:
    return {
        **measure.size._asdict(),
        "tokens": measure.tokens,
        "vocabulary": measure.vocabulary,
        "bytes_per_token": round(measure.bytes_per_token, 4),
        "tokens_per_word": round(measure.fertility, 4),
        "vocabulary_used": measure.used,
        "vocabulary_used_share": round(measure.used_share, 6),
        "unknown_tokens": measure.unknown,
        "unknown_share": round(measure.unknown_share, 6),
        "bytes_behind_unknown": measure.hidden_bytes,
        "part_tokens": measure.partial,
        "part_share": round(measure.partial_share, 6),
    }


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    """Returns the cells in columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            [
                line[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)),
            ]
        )
        for line in lines
    )

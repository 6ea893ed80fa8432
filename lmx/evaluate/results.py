"""The result of a task on a model: scores with intervals, and every item's record.

A folder of results has one of each task: `results.json`, and `samples.jsonl` with what
was asked, what came, and the statistics of which every metric is made. So two models
are compared without running either again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lmx.core.errors import DataError, UserError
from lmx.core.workdir import write_atomic
from lmx.evaluate.compression import compressed_bits_per_byte
from lmx.evaluate.intervals import LEVEL, Interval, interval
from lmx.evaluate.runner import Answers, Asking, Subject, Watch, answer
from lmx.tasks.baselines import baselines
from lmx.tasks.reading import Data, draw, shots
from lmx.tasks.task import Item, Outcome, Task

RESULTS, SAMPLES = "results.json", "samples.jsonl"
MOST_GROUPS = 1000


class Settings(NamedTuple):
    """What an evaluation varies: how many items, how they are asked, which draws."""

    limit: int | None = None
    shots: int = 0
    chat: bool = False
    seed: int = 0


class Result(NamedTuple):
    """What a task gave: `summary` is results.json, `samples` the lines of the other."""

    summary: dict[str, Any]
    samples: list[dict[str, Any]]


def evaluate(
    task: Task, data: Data, subject: Subject, settings: Settings, *, watch: Watch
) -> Result:
    """Returns the scores of a model on a task."""
    shown, data = shots(task, data, settings.shots, seed=settings.seed)
    items = draw(data.scored, settings.limit)
    asking = Asking(settings.chat, shown, settings.seed)
    start = time.monotonic()
    answers = answer(task, items, subject, asking, watch=watch)
    seconds = time.monotonic() - start
    watch(f"{task.name}: scoring", 0, 0)
    samples = [
        _sample(task, item, outcome)
        for item, outcome in zip(items, answers.outcomes, strict=True)
    ]
    summary = {
        "task": task.name,
        "task_digest": task.digest,
        "data": {"rule": data.rule, "left_out": data.left_out},
        "settings": settings._asdict(),
        "items": len(items),
        "prompts": answers.digest,
        "prompts_cut": sum(outcome.cut > 0 for outcome in answers.outcomes),
        "metrics": _metrics(task, samples, seed=settings.seed),
        "baselines": _baselines(task, items),
        "groups": _groups(task, items, samples),
        "seconds": round(seconds, 1),
        "tokens": _tokens(answers),
    }
    return Result(summary, samples)


def _sample(task: Task, item: Item, outcome: Outcome) -> dict[str, Any]:
    statistics = {m.name: list(m.statistics(item, outcome)) for m in task.metrics}
    told: dict[str, Any] = {"id": item.id, "question": item.question}
    optional = {
        "group": item.group,
        "messages": list(item.messages),
        "options": item.options,
        "gold": item.gold if item.options else None,
        "answers": item.answers,
        **outcome._asdict(),
    }
    told |= {name: value for name, value in optional.items() if value or value == 0}
    scores = {
        metric.name: float(metric.value(np.asarray(statistics[metric.name])))
        for metric in task.metrics
    }
    return {**told, "scores": scores, "statistics": statistics}


def statistics_of(samples: Sequence[Mapping[str, Any]], metric: str) -> np.ndarray:
    """Returns the statistics of a metric of all items, float64 [n, S]."""
    return np.asarray([sample["statistics"][metric] for sample in samples], np.float64)


def _metrics(task: Task, samples, *, seed: int) -> dict[str, Any]:
    found = {}
    for metric in task.metrics:
        bounds: Interval = interval(
            metric, statistics_of(samples, metric.name), seed=seed
        )
        found[metric.name] = {
            **bounds._asdict(),
            "level": LEVEL,
            "higher_is_better": metric.higher,
        }
        if metric.signature is not None:
            found[metric.name]["signature"] = metric.signature()
    return found


def _baselines(task: Task, items: Sequence[Item]) -> dict[str, dict[str, float]]:
    if task.request != "read":
        return baselines(task, items)
    text = "".join(item.question for item in items).encode()
    label, bits = compressed_bits_per_byte("xz", text)
    return {label: {"bits_per_byte": bits}}


def _groups(task: Task, items: Sequence[Item], samples) -> dict[str, Any]:
    names = sorted({item.group for item in items})
    if len(names) < 2 or len(names) > MOST_GROUPS:
        return {}
    found = {}
    for name in names:
        mine = [s for i, s in zip(items, samples, strict=True) if i.group == name]
        found[name] = {"items": len(mine)} | {
            m.name: float(m.value(statistics_of(mine, m.name).sum(axis=0)))
            for m in task.metrics
        }
    return found


def _tokens(answers: Answers) -> dict[str, int]:
    return {
        "prompts": sum(map(len, answers.prompts)),
        "answers": sum(sum(outcome.tokens) for outcome in answers.outcomes),
    }


def save(folder: Path, result: Result) -> None:
    """Writes a result into the folder of its task; results.json comes last."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make {folder} ({error.strerror}); choose another --out"
        ) from error
    lines = [json.dumps(sample, ensure_ascii=False) for sample in result.samples]
    (folder / RESULTS).unlink(missing_ok=True)
    write_atomic(folder / SAMPLES, "\n".join(lines) + "\n")
    text = json.dumps(result.summary, indent=2, ensure_ascii=False)
    write_atomic(folder / RESULTS, text + "\n")


def load(folder: Path) -> Result | None:
    """Returns the result in a folder, None where there is none.

    Raises:
      DataError: a file is damaged.
    """
    if not (folder / RESULTS).exists():
        return None
    try:
        summary = json.loads((folder / RESULTS).read_text("utf8"))
        lines = (folder / SAMPLES).read_text("utf8").split("\n")
        samples = [json.loads(line) for line in lines if line]
        if len(samples) != summary["items"]:
            raise ValueError(f"{len(samples)} samples for {summary['items']} items")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"the results in {folder} cannot be read ({error}); remove the folder and "
            "evaluate again"
        ) from error
    return Result(summary, samples)

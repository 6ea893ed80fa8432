"""What a score has to beat: guessing, the commonest answer, a copy of the source."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from lmx.tasks.task import Item, Outcome, Task

NEVER = -1e9
SENTENCE = re.compile(r"(?<=[.!?])\s")


def baselines(task: Task, items: Sequence[Item]) -> dict[str, dict[str, float]]:
    """Returns each metric of what needs no model, by the name of what it does.

    'random' is what guessing gives on average; 'majority' always chooses the option, or
    writes the answer, that is right most often; 'copy' repeats the source, of a summary
    its first sentence.
    """
    if task.request == "choice":
        positions = Counter(item.gold for item in items)
        most = max(positions, key=lambda index: positions[index])
        found = {
            "random": [_every(item) for item in items],
            "majority": [[_picked(item, most)] for item in items],
        }
    elif task.request == "write" and all("copy" in item.facts for item in items):
        found = {"copy": [[_written(_copied(item))] for item in items]}
    elif (
        task.request == "write"
        and all(item.answers for item in items)
        and (not task.chat and not items[0].facts)
    ):
        answers = Counter(item.answers[0] for item in items)
        common = max(answers, key=lambda text: answers[text])
        found = {"majority": [[_written(common)] for _ in items]}
    else:
        return {}
    return {name: _values(task, items, outcomes) for name, outcomes in found.items()}


def _values(
    task: Task, items: Sequence[Item], outcomes: Sequence[Sequence[Outcome]]
) -> dict[str, float]:
    """Returns each metric of the mean statistics of each item's outcomes."""
    values = {}
    for metric in task.metrics:
        sums = sum(
            np.mean([metric.statistics(item, each) for each in mine], axis=0)
            for item, mine in zip(items, outcomes, strict=True)
        )
        values[metric.name] = float(metric.value(np.asarray(sums)))
    return values


def _every(item: Item) -> list[Outcome]:
    return [_picked(item, index) for index in range(len(item.options))]


def _picked(item: Item, index: int) -> Outcome:
    nats = [NEVER] * len(item.options)
    nats[min(index, len(nats) - 1)] = 0.0
    return Outcome(nats=tuple(nats), tokens=(1,) * len(nats))


def _written(text: str) -> Outcome:
    return Outcome(texts=(text,), reasons=("eos",), tokens=(1,))


def _copied(item: Item) -> str:
    text = item.facts["copy"]
    longest = max(len(answer) for answer in item.answers)
    return text if len(text) < 3 * longest else SENTENCE.split(text, 1)[0]

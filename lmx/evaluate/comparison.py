"""Two models on the same items: what changed, and whether chance explains it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lmx.core.errors import UserError
from lmx.evaluate.intervals import Comparison, compare
from lmx.evaluate.results import RESULTS, Result, load, statistics_of
from lmx.tasks import named


class Delta(NamedTuple):
    """A metric of a task for two models."""

    task: str
    metric: str
    higher: bool
    items: int
    first: float
    second: float
    comparison: Comparison


def deltas(first: Path, second: Path, *, seed: int = 0) -> Iterator[Delta]:
    """Yields each metric of the tasks that both folders of results have.

    Raises:
      UserError: there is none, or the two were asked other things.
    """
    both = sorted(_tasks(first) & _tasks(second))
    if not both:
        raise UserError(
            f"{first} and {second} have no task in common; run lmx eval on both"
        )
    for name in both:
        ours, theirs = load(first / name), load(second / name)
        assert ours is not None
        assert theirs is not None
        yield from _task_deltas(name, ours, theirs, seed=seed)


def _tasks(folder: Path) -> set[str]:
    if not folder.is_dir():
        raise UserError(f"{folder} has no results; run lmx eval there first")
    return {path.parent.name for path in folder.glob(f"*/{RESULTS}")}


def _task_deltas(
    name: str, first: Result, second: Result, *, seed: int
) -> Iterator[Delta]:
    if first.summary["task_digest"] != second.summary["task_digest"]:
        raise UserError(
            f"task {name} was another one for the two models ("
            f"{first.summary['task_digest']}, {second.summary['task_digest']}); "
            "evaluate again with one version of lmx"
        )
    ids = [sample["id"] for sample in first.samples]
    by_id = {sample["id"]: sample for sample in second.samples}
    if set(ids) != set(by_id):
        raise UserError(
            f"task {name}: the two models were scored on other items ({len(ids)} and "
            f"{len(by_id)}); evaluate both with the same --data, --limit and --shots"
        )
    samples = [by_id[index] for index in ids]
    for metric in named(name.replace("-", ":")).metrics:
        ours = statistics_of(first.samples, metric.name)
        theirs = statistics_of(samples, metric.name)
        yield Delta(
            task=name,
            metric=metric.name,
            higher=metric.higher,
            items=len(ids),
            first=float(metric.value(ours.sum(axis=0))),
            second=float(metric.value(theirs.sum(axis=0))),
            comparison=compare(metric, ours, theirs, seed=seed),
        )

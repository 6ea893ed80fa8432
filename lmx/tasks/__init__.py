"""Tasks: examples + prompt + score, for evaluation, fine-tuning data and rewards.

    task        what a task is, and an item of it
    shapes      the forms in which data sets are written
    reading     files → items, split
    metrics, overlap, code     scores
    questions, writing, code   the tasks, most of them a few lines

No task runs a model; `lmx.evaluate` does.
"""

from __future__ import annotations

from lmx.core.errors import pick
from lmx.tasks.code import CODE
from lmx.tasks.questions import QUESTIONS, by_classes
from lmx.tasks.task import Item, Metric, Outcome, Task
from lmx.tasks.writing import WRITING

TASKS: dict[str, Task] = {task.name: task for task in (*QUESTIONS, *WRITING, *CODE)}
__all__ = ["TASKS", "Item", "Metric", "Outcome", "Task", "named"]


def named(name: str) -> Task:
    """Returns the task of a name; a `UserError` has the nearest."""
    return by_classes(name) or pick(TASKS, name, "task")

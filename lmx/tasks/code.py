"""Tasks that write Python: does it parse, does it pass unit tests."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from lmx.core.errors import UserError
from lmx.tasks.questions import HUB
from lmx.tasks.sandbox import passes
from lmx.tasks.syntax import first_function, parses
from lmx.tasks.task import Fields, Item, Metric, Outcome, Task, mean

ENDS = ("\ndef ", "\nclass ", "\n#", "\nif ", "\nprint", "\n@", "\nassert")
# A function is asked for where one stands in real code, below the imports.
HEAD = "import os\nimport sys\n\n\n"
VERBS = ("read", "count", "parse", "find", "merge", "check", "format", "remove")
NOUNS = ("lines(path)", "words(text)", "items(values)", "names(table, default=None)")


def pass_at(k: int, *, right: int, samples: int) -> float:
    """Returns the chance that one of `k` of the samples is right.

    The unbiased estimate of Chen et al., "Evaluating large language models trained on
    code", 2021 (arXiv:2107.03374).
    """
    if samples - right < k:
        return 1.0
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def program(item: Item, text: str) -> str:
    """Returns the prompt's function with its tests."""
    return f"{item.facts['head']}{text}\n\n{item.facts['tests']}\n"


def pass_metric(k: int) -> Metric:
    """Returns pass@k: a mean over problems."""

    def score(item: Item, outcome: Outcome) -> float:
        right = sum(passes(program(item, text)) for text in outcome.texts)
        return pass_at(k, right=right, samples=len(outcome.texts))

    return mean(f"pass@{k}", score)


def parse_share(item: Item, outcome: Outcome) -> float:
    """Returns the share of the samples whose function `ast.parse` accepts."""
    head = item.facts["head"]
    return sum(parses(first_function(head + text)) for text in outcome.texts) / len(
        outcome.texts
    )


def _signatures() -> list[dict[str, Any]]:
    return [{"prompt": f"def {verb}_{noun}:\n"} for verb in VERBS for noun in NOUNS]


def _signature(fields: Fields) -> Item:
    head = str(fields["prompt"])
    return Item(HEAD + head, facts={"head": head, "tests": ""})


def _humaneval(fields: Fields) -> Item:
    tests = f"{fields['test']}\n\ncheck({fields['entry_point']})"
    facts = {"head": fields["prompt"], "tests": tests}
    answers = (fields["canonical_solution"],) if "canonical_solution" in fields else ()
    return Item(fields["prompt"], answers=answers, facts=facts)


def _mbpp(fields: Fields) -> Item:
    tests = "\n".join(fields["test_list"])
    asked = fields["text"] if "text" in fields else fields["prompt"]
    question = f'"""\n{asked}\n{tests}\n"""\n'
    return Item(question, answers=(fields["code"],), facts={"head": "", "tests": tests})


PYTHON_SYNTAX = Task(
    name="python_syntax",
    about="bodies of functions: the share that ast.parse accepts",
    public="built in",
    fields=("prompt",),
    item=_signature,
    request="write",
    metrics=(mean("parses", parse_share),),
    separator="",
    stop=(),
    max_new_tokens=96,
    samples=4,
    temperature=0.8,
    built_in=_signatures,
)
HUMANEVAL = Task(
    name="humaneval",
    about="functions by their docstring: pass@1 by unit tests",
    public=f"{HUB}openai/openai_humaneval",
    fields=("prompt", "test", "entry_point"),
    item=_humaneval,
    request="write",
    metrics=(pass_metric(1), mean("parses", parse_share)),
    separator="",
    stop=ENDS,
    max_new_tokens=256,
)
MBPP = Task(
    name="mbpp",
    about="functions by a sentence and tests: pass@1 by unit tests",
    public=f"{HUB}google-research-datasets/mbpp",
    subset="full/",
    fields=("text|prompt", "code", "test_list"),
    item=_mbpp,
    request="write",
    metrics=(pass_metric(1),),
    separator="",
    stop=('\n"""', "\nassert", "\nprint"),
    max_new_tokens=256,
)

CODE = (PYTHON_SYNTAX, HUMANEVAL, MBPP)
DRAWN = 0.8  # the temperature at which several answers differ


def sampled(task: Task, samples: int | None) -> Task:
    """Returns the task with so many answers of an item, and pass@k for all of them."""
    if samples is None or task.request != "write" or samples == task.samples:
        return task
    if task not in CODE:
        raise UserError(
            f"--samples={samples}: task {task.name} scores one answer; leave it out"
        )
    metrics = task.metrics
    if metrics[0].name == "pass@1" and samples > 1:
        metrics = (metrics[0], pass_metric(samples), *metrics[1:])
    temperature = DRAWN if samples > 1 else task.temperature
    return dataclasses.replace(
        task, samples=samples, temperature=temperature, metrics=metrics
    )

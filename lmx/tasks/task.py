"""What a task is: examples, how they are asked, and how an answer is scored.

A task is data: it names its fields, its prompt and its metrics, and never runs a model.
One task serves evaluation, supervised fine-tuning (`records.py`) and rewards (`score`).
Three kinds of request cover all:

    choice   the likelihood of each of some continuations
    write    a text, generated up to a stop rule, and what it is compared with
    read     a text whose bits per byte are measured
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

Fields = Mapping[str, Any]
Request = Literal["choice", "write", "read"]


@dataclasses.dataclass(frozen=True)
class Item:
    """One example, ready to be asked.

    Attributes:
      question: what is asked, up to where the answer begins; the text of 'read'.
      answers: right ones, the best first; it is what fine-tuning learns and shots show.
      options: the answers to choose from, of a 'choice'.
      gold: the index of the right option, -1 where several are.
      true: the indices of all options that are right, where several may be.
      messages: the conversation before the answer, in place of a question.
      group: the domain, language or class that its score is also given for.
      facts: what only the task's own metrics know: unit tests, labels.
      key: what decides the split where a file has none.
      id: the hash of all that is asked.
    """

    question: str
    answers: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    gold: int = -1
    true: tuple[int, ...] = ()
    messages: tuple[Mapping[str, str], ...] = ()
    group: str = ""
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    key: str = ""
    id: str = ""


class Outcome(NamedTuple):
    """What a model did with an item.

    Attributes:
      nats: log-likelihood of each option, or of the whole text of 'read'.
      tokens: how many tokens each of them has.
      texts: what was written, one for each sample.
      reasons: why each of these ended: 'stop', 'eos' or 'length'.
      cut: how many tokens of the prompt did not fit the context.
    """

    nats: tuple[float, ...] = ()
    tokens: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    cut: int = 0


class Metric(NamedTuple):
    """A number of a set of items, made of the sum of what each contributes.

    A mean, a corpus metric and their bootstrap are then the same arithmetic.

    Attributes:
      name: such as 'accuracy'.
      statistics: of an item and its outcome, always as many numbers.
      value: of sums of them, float64 [..., S], the metric [...].
      higher: whether more is better.
      signature: says how it was computed, where others compute it in other ways.
    """

    name: str
    statistics: Callable[[Item, Outcome], Sequence[float]]
    value: Callable[[np.ndarray], np.ndarray]
    higher: bool = True
    signature: Callable[[], str] | None = None


def mean(name: str, score: Callable[[Item, Outcome], float], **options) -> Metric:
    """Returns the metric that is the mean of a score of each item."""

    def statistics(item: Item, outcome: Outcome) -> tuple[float, float]:
        return float(score(item, outcome)), 1.0

    return Metric(name, statistics, ratio, **options)


def ratio(sums: np.ndarray) -> np.ndarray:
    """Returns the first sum over the second; 0 where that is 0."""
    return sums[..., 0] / np.where(sums[..., 1] == 0, 1, sums[..., 1])


@dataclasses.dataclass(frozen=True)
class Task:
    """Examples + prompt + score.

    Attributes:
      name: as in `--tasks=`.
      about: what it asks, in a few words.
      public: where its data set is published: a place of `lmx.data.places`, from
        which it is read where no other is given, or words.
      subset: what the names of its files begin with there.
      fields: what its records must have.
      item: makes an `Item` of a record, or None of one that cannot be scored; a
        KeyError names a missing field, a ValueError says what is wrong.
      request: 'choice', 'write' or 'read'.
      metrics: the first one is the task's.
      instruction: what each prompt begins with.
      separator: between question and answer, in a plain prompt.
      stop: strings that end an answer to a plain prompt.
      max_new_tokens: the most that an answer has.
      samples, temperature: how many answers of an item, and how they are drawn.
      file: what the names of its files begin with, in a folder of data.
      test_share: of a file without splits, by the hash of each item's key; None where
        such a file is scored whole.
      chat: whether it can only be asked with a chat template.
      built_in: records that need no file.
      version: raised when scores of before cannot be compared any more.
    """

    name: str
    about: str
    public: str
    fields: tuple[str, ...]
    item: Callable[[Fields], Item | None]
    request: Request
    metrics: tuple[Metric, ...]
    instruction: str = ""
    separator: str = " "
    stop: tuple[str, ...] = ("\n",)
    max_new_tokens: int = 64
    samples: int = 1
    temperature: float = 0.0
    file: str = ""
    test_share: float | None = None
    chat: bool = False
    built_in: Callable[[], list[dict[str, Any]]] | None = None
    subset: str = ""
    version: int = 1

    @property
    def digest(self) -> str:
        """Returns a hash of all that decides what a score means but the data."""
        told = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("item", "metrics", "built_in", "about", "public")
        }
        told["metrics"] = [metric.name for metric in self.metrics]
        text = json.dumps(told, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def score(self, item: Item, outcome: Outcome) -> dict[str, float]:
        """Returns each metric of one item alone: a reward, or a line of a record."""
        return {
            metric.name: float(
                metric.value(np.asarray(metric.statistics(item, outcome), np.float64))
            )
            for metric in self.metrics
        }

    def prompt(self, item: Item, shots: Sequence[Item] = ()) -> str:
        """Returns the plain prompt: instruction, shots with their answers, question."""
        shown = [f"{shot.question}{self.separator}{shot.answers[0]}" for shot in shots]
        parts = [self.instruction] if self.instruction else []
        return "\n\n".join([*parts, *shown, item.question])

    def messages(
        self, item: Item, shots: Sequence[Item] = ()
    ) -> list[Mapping[str, str]]:
        """Returns the conversation that asks the same; shots are turns before it."""
        if item.messages:
            return list(item.messages)
        turns: list[Mapping[str, str]] = []
        for asked in (*shots, item):
            question = asked.question
            if self.instruction and not turns:
                question = f"{self.instruction}\n\n{question}"
            turns.append({"role": "user", "content": question})
            if asked is not item:
                turns.append({"role": "assistant", "content": asked.answers[0]})
        return turns

    def continuation(self, answer: str, *, chat: bool) -> str:
        """Returns an answer as it follows the prompt."""
        return answer if chat else f"{self.separator}{answer}"

    def record(self, item: Item, *, chat: bool) -> dict[str, Any] | None:
        """Returns what fine-tuning learns of an item: the same prompt, and its answer.

        With `chat` it has 'messages', else 'prompt' and 'completion', or 'text' of
        'read'. None where there is no right answer.
        """
        if self.request == "read":
            return {"text": item.question}
        if not item.answers:
            return None
        answer = item.answers[0]
        if chat or item.messages:
            turns = self.messages(item)
            return {"messages": [*turns, {"role": "assistant", "content": answer}]}
        completion = self.continuation(answer, chat=False)
        return {"prompt": self.prompt(item), "completion": completion}

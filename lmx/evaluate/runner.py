"""Runs a task on a model: items → what the model did with each.

It encodes, scores and generates; what an answer is worth is the task's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from lmx.core.errors import DataError, UserError
from lmx.evaluate.likelihood import likelihoods
from lmx.evaluate.pairs import Scored, encode_pairs, rolling, start_id
from lmx.generate.decode import Generator
from lmx.generate.sampling import SamplingConfig
from lmx.generate.text import Completion, complete, encode_prompts
from lmx.inputs.chat import ChatTemplate
from lmx.inputs.chat_tokens import encode_chat
from lmx.inputs.tokenizers import Tokenizer
from lmx.tasks.task import Item, Outcome, Task

WINDOW = 1024  # targets of a text that are read at once, or the context if less

Watch = Callable[[str, int, int], None]


class Subject(NamedTuple):
    """The model that is evaluated; `template` is None where it has none."""

    generator: Generator
    tokenizer: Tokenizer
    template: ChatTemplate | None


class Asking(NamedTuple):
    """How a task is asked.

    Attributes:
      chat: whether with the chat template, or as a plain prompt.
      shots: items that are shown with their answers.
      seed: of the random streams of what is drawn.
    """

    chat: bool = False
    shots: Sequence[Item] = ()
    seed: int = 0


class Answers(NamedTuple):
    """What a model did with all items, and the hash of what it was asked."""

    outcomes: list[Outcome]
    prompts: list[list[int]]

    @property
    def digest(self) -> str:
        """Returns the hash of all prompts' token ids."""
        return hashlib.sha256(repr(self.prompts).encode()).hexdigest()[:16]


def check(task: Task, subject: Subject, asking: Asking) -> None:
    """Raises a `UserError` where the model cannot be asked so."""
    if (task.chat or asking.chat) and subject.template is None:
        raise UserError(
            f"task {task.name} is asked as a conversation, and this model has no chat "
            "template; evaluate one that was tuned to chat"
            + ("" if task.chat else ", or leave --chat out")
        )


def answer(
    task: Task,
    items: Sequence[Item],
    subject: Subject,
    asking: Asking,
    *,
    watch: Watch,
) -> Answers:
    """Returns what the model did with each item."""
    check(task, subject, asking)
    run = {"choice": _choose, "write": _write, "read": _read}[task.request]
    return run(task, items, subject, asking, watch)


def _choose(task, items, subject: Subject, asking: Asking, watch: Watch) -> Answers:
    requests = []
    for item in items:
        if len(item.options) < 2:
            raise DataError(
                f"task {task.name}: item {item.id} has {len(item.options)} options; "
                "give two or more"
            )
        found = _pairs(task, item, subject, asking)
        for option, request in zip(item.options, found, strict=True):
            if not request.targets:
                raise DataError(
                    f"task {task.name}: the option {option!r} of item {item.id} has "
                    "no tokens; give it some text"
                )
        requests.append(found)
    flat = [request for found in requests for request in found]
    scores = iter(
        likelihoods(
            subject.generator,
            flat,
            watch=lambda done, total: watch(f"{task.name}: reading", done, total),
        )
    )
    outcomes = []
    for found in requests:
        mine = [next(scores) for _ in found]
        outcomes.append(
            Outcome(
                nats=tuple(score.nats for score in mine),
                tokens=tuple(request.targets for request in found),
                cut=max(score.cut for score in mine),
            )
        )
    return Answers(outcomes, [found[0].ids for found in requests])


def _pairs(task: Task, item: Item, subject: Subject, asking: Asking) -> list[Scored]:
    """Returns the ids of each option after the prompt."""
    tokenizer = subject.tokenizer
    if not asking.chat:
        prompt = task.prompt(item, asking.shots)
        answers = [task.continuation(option, chat=False) for option in item.options]
        return encode_pairs(tokenizer, [(prompt, text) for text in answers])
    assert subject.template is not None
    turns = task.messages(item, asking.shots)
    asked = encode_chat(subject.template, tokenizer, turns)
    options = tokenizer.encode_batch(list(item.options))
    return [Scored([*asked, *ids], len(ids), len(asked)) for ids in options]


def prompt_ids(task: Task, item: Item, subject: Subject, asking: Asking) -> list[int]:
    """Returns the ids after which an answer is written."""
    if task.chat or asking.chat:
        assert subject.template is not None
        turns = task.messages(item, asking.shots)
        return encode_chat(subject.template, subject.tokenizer, turns)
    prompt = task.prompt(item, asking.shots)
    return encode_prompts(subject.tokenizer, [prompt])[0]


def _write(task, items, subject: Subject, asking: Asking, watch: Watch) -> Answers:
    prompts = [prompt_ids(task, item, subject, asking) for item in items]
    context = subject.generator.config.context_length
    new_tokens = min(task.max_new_tokens, context // 2)
    sampling = SamplingConfig(
        temperature=task.temperature,
        max_new_tokens=new_tokens,
        stop=() if task.chat or asking.chat else task.stop,
        seed=asking.seed,
        long_prompt="cut",
    )
    asked = [ids for ids in prompts for _ in range(task.samples)]
    done = write(
        subject,
        asked,
        sampling,
        watch=lambda n, total: watch(f"{task.name}: writing", n, total),
    )
    outcomes = []
    for index, ids in enumerate(prompts):
        mine = done[index * task.samples : (index + 1) * task.samples]
        outcomes.append(
            Outcome(
                texts=tuple(completion.text for completion in mine),
                reasons=tuple(completion.finish_reason for completion in mine),
                tokens=tuple(len(completion.token_ids) for completion in mine),
                cut=max(0, len(ids) - (context - new_tokens)),
            )
        )
    return Answers(outcomes, prompts)


def write(
    subject: Subject,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    *,
    watch: Callable[[int, int], None],
) -> list[Completion]:
    """Returns what follows each prompt; those of like length go together."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    size = subject.generator.max_batch
    done: dict[int, Completion] = {}
    for start in range(0, len(order), size):
        part = order[start : start + size]
        completions = complete(
            subject.generator,
            subject.tokenizer,
            [prompts[i] for i in part],
            sampling,
            rows=part,
        )
        done.update(zip(part, completions, strict=True))
        watch(len(done), len(order))
    return [done[i] for i in range(len(prompts))]


def _read(task, items, subject: Subject, asking: Asking, watch: Watch) -> Answers:
    tokenizer = subject.tokenizer
    size = min(WINDOW, subject.generator.config.context_length)
    encoded = tokenizer.encode_batch([item.question for item in items])
    windows = [rolling(ids, start=start_id(tokenizer), size=size) for ids in encoded]
    scores = iter(
        likelihoods(
            subject.generator,
            [window for found in windows for window in found],
            watch=lambda done, total: watch(f"{task.name}: reading", done, total),
        )
    )
    outcomes = [
        Outcome(nats=(sum(next(scores).nats for _ in found),), tokens=(len(ids),))
        for found, ids in zip(windows, encoded, strict=True)
    ]
    return Answers(outcomes, encoded)

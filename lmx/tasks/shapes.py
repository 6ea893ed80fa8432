"""Records → items: the few forms in which data sets are written.

Each function takes what varies, a template and some field names, and returns a task's
`item`. A template names fields in braces; the names under which publishers have the
same field are tried in turn.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from lmx.curate.records import FIELD
from lmx.tasks.metrics import numbers
from lmx.tasks.task import Fields, Item

ALIASES = {
    "question": ("question_stem", "goal"),
    "passage": ("context", "body"),
    "text": ("document", "article"),
}
LETTER = re.compile(r"\s*([A-Z])[.)]\s?(.*)")

MakeItem = Callable[[Fields], Item | None]


def field(fields: Fields, name: str) -> Any:
    """Returns a field by its name or another that publishers use."""
    for known in (name, *ALIASES.get(name, ())):
        if known in fields:
            return fields[known]
    raise KeyError(name)


def fill(template: str, fields: Fields) -> str:
    """Returns the template with the fields in place."""

    def put(match: re.Match[str]) -> str:
        value = field(fields, match[1])
        if not isinstance(value, str | int | float):
            raise TypeError(f"field {match[1]!r} holds {type(value).__name__}")
        return str(value).strip()

    return FIELD.sub(put, template)


def choice(
    template: str, *, options: Sequence[str] = (), letters: bool = False
) -> MakeItem:
    """Returns items to choose from: the record's options, or these for all records.

    With `options` the field 'answer' or 'label' is an index of them, a bool or one of
    them. With `letters` the options stand in the prompt and their letters are chosen.
    """

    def item(fields: Fields) -> Item:
        if options:
            listed, gold = list(options), _index(fields, options)
        else:
            listed, gold = listed_options(fields)
        question = fill(template, fields)
        if letters:
            names = [chr(ord("A") + i) for i in range(len(listed))]
            lines = [f"{a}. {text}" for a, text in zip(names, listed, strict=True)]
            question = question.replace("\nAnswer:", "\n" + "\n".join(lines))
            question, listed = f"{question}\nAnswer:", names
        return Item(
            question,
            answers=(listed[gold],),
            options=tuple(listed),
            gold=gold,
            group=listed[gold] if options else "",
        )

    return item


def listed_options(fields: Fields) -> tuple[list[str], int]:
    """Returns a record's options and the index of the right one.

    Known forms: lines 'A. text' in 'options' with such an 'answer'; 'choices' with
    'text' and 'label', and 'answerKey'; 'sol1', 'sol2', … or 'answerA', … or a list
    'choices', with 'label' or 'answer'.
    """
    if isinstance(fields.get("options"), str):
        return _lettered(fields["options"], fields["answer"])
    choices = fields.get("choices")
    if isinstance(choices, dict):
        return list(choices["text"]), list(choices["label"]).index(fields["answerKey"])
    if isinstance(choices, list):
        return list(choices), _index(fields, choices)
    for first in ("sol1", "answerA"):
        if first in fields:
            stem, start = first[:-1], ord(first[-1])
            names = [f"{stem}{chr(start + i)}" for i in range(9)]
            listed = [str(fields[name]) for name in names if name in fields]
            gold = int(fields["label"]) - (1 if first == "answerA" else 0)
            return listed, _within(gold, listed)
    raise KeyError("options")


def _lettered(text: str, answer: str) -> tuple[list[str], int]:
    """Returns options that are lines 'A. text'; the answer is such a line."""
    matches = [LETTER.fullmatch(line) for line in text.strip("\n").split("\n")]
    listed = [(m[1], m[2].strip()) for m in matches if m]
    right = LETTER.fullmatch(answer)
    if right is None or len(listed) < 2:
        raise ValueError("options are not lines such as 'A. text'")
    gold = [i for i, (letter, _) in enumerate(listed) if letter == right[1]]
    if len(gold) != 1:
        raise ValueError(f"the answer {answer!r} is not one of the options")
    return [text for _, text in listed], gold[0]


def _index(fields: Fields, options: Sequence[str]) -> int:
    value = fields["answer"] if "answer" in fields else fields["label"]
    if isinstance(value, str) and value in options:
        return list(options).index(value)
    return _within(int(value), options)


def _within(index: int, options: Sequence[str]) -> int:
    if not 0 <= index < len(options):
        raise ValueError(f"the answer {index} is none of {len(options)} options")
    return index


def truthful(template: str) -> MakeItem:
    """Returns items of TruthfulQA: options with one right answer, and with several."""

    def item(fields: Fields) -> Item:
        first, many = fields["mc1_targets"], fields["mc2_targets"]
        options = tuple(dict.fromkeys([*first["choices"], *many["choices"]]))

        def right(targets) -> list[int]:
            pairs = zip(targets["choices"], targets["labels"], strict=True)
            return [options.index(text) for text, label in pairs if label]

        return Item(
            fill(template, fields),
            answers=(options[right(first)[0]],),
            options=options,
            gold=right(first)[0],
            true=tuple(right(many)),
            facts={
                "first": [options.index(text) for text in first["choices"]],
                "many": [options.index(text) for text in many["choices"]],
            },
        )

    return item


def written(
    template: str, *, answer: str, key: str | None = None, copy: str | None = None
) -> MakeItem:
    """Returns items whose answer is written: the field `answer`, one text or several.

    `key` is the template of what decides the split, for a file without one; `copy` that
    of a text of which a baseline copies the first sentence or all.
    """

    def item(fields: Fields) -> Item | None:
        value = field(fields, answer)
        answers = [value] if isinstance(value, str) else list(value)
        answers = [text.strip() for text in answers if text.strip()]
        if not answers:
            return None
        return Item(
            fill(template, fields),
            answers=tuple(answers),
            key=fill(key, fields).lower()[:64] if key else "",
            facts={"copy": fill(copy, fields)} if copy else {},
        )

    return item


def numeric(template: str, *, answer: str) -> MakeItem:
    """Returns the items of `written` whose answer has just one number."""
    make = written(template, answer=answer)

    def item(fields: Fields) -> Item | None:
        found = make(fields)
        return found if found and len(numbers(found.answers[0])) == 1 else None

    return item


def reply(fields: Fields) -> Item | None:
    """Returns a conversation whose last turn is the reply to be given."""
    turns = fields["messages"]
    for index, turn in enumerate(turns):
        if not isinstance(turn.get("role"), str) or not isinstance(
            turn.get("content"), str
        ):
            raise ValueError(f"messages[{index}] has no role and content that are text")
    if len(turns) < 2 or turns[-1]["role"] != "assistant":
        return None
    before = tuple({k: t[k] for k in ("role", "content")} for t in turns[:-1])
    said = turns[-1]["content"].strip()
    if not said:
        return None
    group = str(fields.get("lang", fields.get("source", "")))
    return Item(before[-1]["content"], answers=(said,), messages=before, group=group)


def passage(*, group: Sequence[str]) -> MakeItem:
    """Returns texts to be read; the first field of `group` that is there parts them."""

    def item(fields: Fields) -> Item | None:
        text = field(fields, "text")
        if not isinstance(text, str):
            raise TypeError(f"field 'text' holds {type(text).__name__}")
        name = next((str(fields[g]) for g in group if fields.get(g)), "")
        return Item(text, group=name) if text.strip() else None

    return item

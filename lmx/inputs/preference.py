"""Pairs of completions of a prompt, the better first: what preferences are.

A record is as public sets have it. Each field is a text, or a list of messages:

    prompt     chosen, rejected
    text       texts that follow it
    messages   messages that follow them, or the text of the reply
    text       messages: the reply, or a conversation that has the prompt in it
    none       both from the start: what they have in common is the prompt

Where anything is messages, a prompt that is text is the user's and a completion that is
text the assistant's. A pair is two examples, of which the completions are learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmx.core.errors import DataError
from lmx.inputs.chat import ChatTemplate
from lmx.inputs.example import (
    Encoder,
    Example,
    Format,
    Message,
    Record,
    complete,
    converse,
    message_problem,
    says_something,
)
from lmx.inputs.tokenizers import Tokenizer

SIDES = ("chosen", "rejected")
NO_PROMPT = "there is no prompt, and chosen and rejected have no common beginning"

Pair = tuple[str, str, str] | tuple[list[Message], list[Message], list[Message]]


def pair_of(record: Record) -> Pair:
    """Returns prompt, chosen and rejected: three texts, or three lists of messages.

    Raises a `DataError` that says why a record is no pair.
    """
    prompt = record.get("prompt") or None
    values = [prompt, *(record[side] for side in SIDES)]
    for name, value in zip(("prompt", *SIDES), values, strict=True):
        if isinstance(value, list) and (why := message_problem(value, name=name)):
            raise DataError(why)
    if any(isinstance(value, list) for value in values):
        return _conversations(prompt, record)
    return _texts(prompt, record)


def _texts(prompt: str | None, record: Record) -> tuple[str, str, str]:
    chosen, rejected = (record[side] for side in SIDES)
    _check_pair(chosen, rejected)
    if prompt is None:
        common = chosen[: _common(chosen, rejected)]
        # Up to the last whole word; tokens begin with the space before a word.
        end = len(common)
        while end and not common[end - 1].isspace():
            end -= 1
        prompt = common[:end].removesuffix(" ")
        if not prompt.strip():
            raise DataError(NO_PROMPT)
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    for side, text in zip(SIDES, (chosen, rejected), strict=True):
        if not text.strip():
            raise DataError(f"{side} is empty: there is nothing to compare")
    return prompt, chosen, rejected


def _conversations(
    prompt: str | list[Message] | None, record: Record
) -> tuple[list[Message], list[Message], list[Message]]:
    whole = [_conversation(prompt, record[side], side=side) for side in SIDES]
    _check_pair(*whole)
    common = len(prompt) if isinstance(prompt, list) else _common(*whole)
    if not common:
        raise DataError(NO_PROMPT if prompt is None else "the prompts differ")
    chosen, rejected = (messages[common:] for messages in whole)
    for side, messages in zip(SIDES, (chosen, rejected), strict=True):
        if messages and messages[0]["role"] != "assistant":
            raise DataError("the prompts differ: what is compared are replies")
        if not says_something(messages):
            raise DataError(f"{side} is empty: there is nothing to compare")
    return whole[0][:common], chosen, rejected


def _conversation(
    prompt: str | list[Message] | None, said: str | list[Message], *, side: str
) -> list[Message]:
    """Returns a side with its prompt, as messages."""
    if isinstance(said, str):
        if prompt is None:
            raise DataError(f"{side} is text, the other messages, without a prompt")
        said = [{"role": "assistant", "content": said}]
    if prompt is None:
        return said
    if isinstance(prompt, str):
        asked = [m["content"].strip() for m in said if m["role"] == "user"]
        if prompt.strip() in asked and said[0]["role"] != "assistant":
            return said
        prompt = [{"role": "user", "content": prompt}]
    if said[: len(prompt)] == prompt and len(said) > len(prompt):
        return said
    if said[0]["role"] != "assistant":
        raise DataError(f"the prompts differ: {side} does not begin with the prompt")
    return [*prompt, *said]


def _common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Returns how many items both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _check_pair(chosen: Any, rejected: Any) -> None:
    if chosen == rejected:
        raise DataError("chosen and rejected are equal: there is nothing to compare")


def _problem(record: Record) -> str | None:
    try:
        pair_of(record)
    except DataError as error:
        return str(error)
    return None


def _encoder(tokenizer: Tokenizer, template: ChatTemplate) -> Encoder:
    def encode(record: Record) -> Sequence[Example]:
        prompt, *sides = pair_of(record)
        if isinstance(prompt, str):
            return [complete(tokenizer, prompt, str(side)) for side in sides]
        return [
            converse(tokenizer, template, [*prompt, *side], start=len(prompt))
            for side in sides
        ]

    return encode


PREFERENCE = Format(
    ("prompt", *SIDES),
    _problem,
    _encoder,
    group=2,
    messages=("prompt", *SIDES),
    optional=("prompt",),
)

"""One example for a model, and what a format of them is.

What is learned of an example is told by a weight for each token. Here are the two ways
to it that formats share: a prompt with its completion, and a conversation with its
turns. Which formats there are is in `examples`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from lmx.core.errors import DataError
from lmx.inputs.chat import ChatTemplate
from lmx.inputs.chat_tokens import encode_parts, encode_turns
from lmx.inputs.tokenizers import Tokenizer


class Example(NamedTuple):
    """One whole example; its first token is context and is never predicted."""

    ids: Sequence[int]
    weights: Sequence[int]
    """Of each id as a target: 0 is context, 1 is learned; at most 255."""
    size: int
    """UTF-8 bytes of the text that is learned: what bits per byte are per."""


Record = Mapping[str, Any]
Message = Mapping[str, Any]
Encoder = Callable[[Record], Sequence[Example]]


class Format(NamedTuple):
    """One kind of record.

    Attributes:
      fields: what a record has, in the order in which filters read it.
      problem: says why a record cannot be an example; None where it can.
      encoder: of a tokenizer and its chat template; of a record it makes one example or
        several. It raises a `DataError` for a record that this tokenizer or template
        has nothing to learn of.
      specials: what a tokenizer that is trained for it must have.
      group: how many successive examples belong together: what is compared is two.
      messages: fields that may be lists of messages, for the chat template.
      optional: fields that a record may lack.
    """

    fields: tuple[str, ...]
    problem: Callable[[Record], str | None]
    encoder: Callable[[Tokenizer, ChatTemplate], Encoder]
    specials: tuple[str, ...] = ()
    group: int = 1
    messages: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


def learned(message: Message) -> bool:
    """Returns whether a turn is: an assistant's, but where its 'weight' is 0."""
    return message["role"] == "assistant" and message.get("weight") != 0


def message_problem(messages: Any, *, name: str) -> str | None:
    """Returns what is wrong with a list of messages that a field `name` holds."""
    if not isinstance(messages, list) or not messages:
        return f"{name} is not a list of messages"
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not all(
            isinstance(message.get(key), str) for key in ("role", "content")
        ):
            return f"{name}[{index}] has no role and content that are text"
        weight = message.get("weight")
        if weight not in (None, 0, 1):
            return f"{name}[{index}] has weight {weight!r:.20}, not 0 or 1"
        if weight and message["role"] != "assistant":
            return f"{name}[{index}] has weight 1, and only assistants are learned"
    return None


def says_something(messages: Sequence[Message]) -> bool:
    """Returns whether a turn that is learned says anything."""
    return any(learned(message) and message["content"].strip() for message in messages)


def complete(tokenizer: Tokenizer, prompt: str, completion: str) -> Example:
    """Returns the example of which the completion, and its end, are learned."""
    parts = [(prompt, 0), (completion, 1)]
    ids, weights = encode_parts(tokenizer.encode, parts, tokenizer=tokenizer)
    first = list(tokenizer.prefix_ids)
    if not first and weights[0]:
        first = [tokenizer.bos_id]  # what is learned follows something
    ids = [*first, *ids, tokenizer.eos_id]
    return weighed(tokenizer, ids, [*([0] * len(first)), *weights, 1])


def converse(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Message],
    *,
    start: int = 0,
) -> Example:
    """Returns the example of which the replies from message `start` on are learned."""
    turns = [i for i, m in enumerate(messages) if i >= start and learned(m)]
    bare = [{key: m[key] for key in m if key != "weight"} for m in messages]
    ids, weights = encode_turns(template, tokenizer, bare, learned=turns)
    return weighed(tokenizer, ids, weights)


def weighed(
    tokenizer: Tokenizer, ids: Sequence[int], weights: Sequence[int]
) -> Example:
    """Returns the example; raises a `DataError` where nothing of it is learned."""
    if not any(weights[1:]):
        raise DataError("no token has a loss: nothing is learned")
    said = [index for index, weight in zip(ids, weights, strict=True) if weight]
    return Example(ids, weights, len(tokenizer.decode(said).encode()))

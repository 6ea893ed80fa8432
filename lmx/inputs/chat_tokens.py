"""A conversation → token ids: the template's special tokens, and nobody else's.

A rendered prompt is one text, in which a message that spells "<|im_end|>" would end the
turn. So a conversation with such a message is rendered again with a mark in what is
spelled: what then still is a special token was written by the template. This needs a
template that only inserts messages or trims them; of others such messages are refused.
For training, what the model is to say is what follows the prompt for it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lmx.core.errors import DataError, UserError
from lmx.inputs.chat import ChatTemplate
from lmx.inputs.tokenizers import Tokenizer

MARKS = range(0xE000, 0xF900)  # for private use


def encode_chat(
    template: ChatTemplate, tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]]
) -> list[int]:
    """Returns the ids of the prompt that `template` makes of a conversation.

    Raises a `UserError` for a message that spells a special token where the template
    does more than to insert it.
    """
    text, mark, _ = _guarded(template, tokenizer, messages, prompt=True)
    return _markup_ids(tokenizer, text, mark)


def encode_turns(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    learned: Sequence[int],
) -> tuple[list[int], list[int]]:
    """Returns the ids of a conversation, and 1 for each that the model is to say.

    That is, of each message whose index is in `learned`, what follows the prompt for
    it, up to the last special token of the turn, which ends it. Raises a `UserError`
    as `encode_chat` does, a `DataError` where the prompt for a reply is not how the
    conversation begins.
    """
    text, mark, guarded = _guarded(template, tokenizer, messages, prompt=False)
    ends = tokenizer.special_pattern
    parts: list[tuple[str, int]] = []
    at = 0
    for index in learned:
        if not index:
            raise DataError("a conversation that begins with a reply has no prompt")
        before = template.render(guarded[:index])
        after = text
        if index + 1 < len(guarded):
            after = template.render(guarded[: index + 1], add_generation_prompt=False)
        said = after[len(before) :]
        stops = [match.end() for match in ends.finditer(said)]
        said = said[: stops[-1]] if stops else said
        if not (text.startswith(before + said) and after.startswith(before)):
            raise DataError(
                f"the chat template writes messages[{index}] in another way than its "
                "prompt and reply; give it weight 0"
            )
        parts += [(before[at:], 0), (said, 1)]
        at = len(before) + len(said)
    parts.append((text[at:], 0))

    def encode(part: str) -> list[int]:
        return _markup_ids(tokenizer, part, mark)

    return encode_parts(encode, parts, tokenizer=tokenizer)


def encode_parts(
    encode: Callable[[str], list[int]],
    parts: Sequence[tuple[str, int]],
    *,
    tokenizer: Tokenizer,
) -> tuple[list[int], list[int]]:
    """Returns the ids of parts of a text, and the weight of the part each is of.

    They are those of the whole text where its tokens end at the parts' ends. Where one
    would span two parts, each part is encoded on its own, as it is when a model goes on
    from a prompt; a tokenizer that begins texts with a space cannot, a `DataError`.
    """
    encoded = [encode(part) for part, _ in parts]
    apart = [index for ids in encoded for index in ids]
    sizes = [len(ids) for ids in encoded]
    whole = encode("".join(part for part, _ in parts))
    if whole != apart:
        ends, text = [0], ""
        for part, _ in parts:
            text += part
            before = encode(text)
            ends.append(len(before) if whole[: len(before)] == before else -1)
        if -1 not in ends and sorted(ends) == ends:
            apart, sizes = whole, [b - a for a, b in itertools.pairwise(ends)]
        elif tokenizer.begins_with_space:
            raise DataError("a token spans the end of a prompt and what follows")
    weights = [
        weight
        for (_, weight), size in zip(parts, sizes, strict=True)
        for _ in range(size)
    ]
    return apart, weights


def _guarded(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    prompt: bool,
) -> tuple[str, str, Sequence[Mapping[str, Any]]]:
    """Returns a conversation as markup, the mark in what is spelled, and the messages.

    There is no mark, '', where no message spells a special token.
    """
    text = template.render(messages, add_generation_prompt=prompt)
    spelled = tokenizer.special_pattern
    found = next((m for s in _texts(messages) if (m := spelled.search(s))), None)
    if found is None:
        return text, "", messages
    mark = next(mark for mark in map(chr, MARKS) if mark not in text)

    def marked(string: str) -> str:
        return spelled.sub(lambda match: mark.join([*match[0], ""]), string)

    guarded = _mapped(messages, marked)
    again = template.render(guarded, add_generation_prompt=prompt)
    sound = (
        again.replace(mark, "") == text
        and not any(spelled.search(string) for string in _texts(guarded))
        and _encode(tokenizer, text) == tokenizer.encode_markup(text)
    )
    if not sound:
        raise UserError(
            f"a message spells the special token {found[0]!r}, and the chat template "
            "does more with messages than to insert them; spell it in another way"
        )
    return again, mark, guarded


def _markup_ids(tokenizer: Tokenizer, text: str, mark: str) -> list[int]:
    return _encode(tokenizer, text, mark) if mark else tokenizer.encode_markup(text)


def _encode(tokenizer: Tokenizer, text: str, mark: str = "") -> list[int]:
    """Returns the ids of markup; `mark` is dropped once special tokens are found."""
    tokens = tokenizer.special_tokens
    ids, at, blank = [], 0, r"\s*"
    patterns = []
    for index in sorted(tokens, key=lambda index: -len(tokens[index].content)):
        token = tokens[index]
        name = rf"(?P<t{index}>{re.escape(token.content)})"
        patterns.append(blank * token.lstrip + name + blank * token.rstrip)
    for match in re.finditer("|".join(patterns), text):
        ids += tokenizer.encode(text[at : match.start()].replace(mark, ""))
        ids.append(int(str(match.lastgroup)[1:]))
        at = match.end()
    return ids + tokenizer.encode(text[at:].replace(mark, ""))


def _texts(value: Any) -> Iterator[str]:
    """Yields all strings in messages, those of parts and of calls too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """Returns messages with every string in them changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _mapped(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(item, change) for item in value]
    return value

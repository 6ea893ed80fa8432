"""A conversation → token ids: the template's special tokens, and nobody else's.

A rendered prompt is one text, in which a message that spells "<|im_end|>" would end the
turn. So a conversation with such a message is rendered again with a mark in what is
spelled: what then still is a special token was written by the template. This needs a
template that only inserts messages or trims them; of others such messages are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lmx.core.errors import UserError
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
    text = template.render(messages)
    names = [token.content for token in tokenizer.special_tokens.values()]
    names.sort(key=len, reverse=True)
    spelled = re.compile("|".join(map(re.escape, names)) or r"(?!)")
    found = next((m for s in _texts(messages) if (m := spelled.search(s))), None)
    if found is None:
        return tokenizer.encode_markup(text)
    mark = next(mark for mark in map(chr, MARKS) if mark not in text)

    def marked(string: str) -> str:
        return spelled.sub(lambda match: mark.join([*match[0], ""]), string)

    guarded = _mapped(messages, marked)
    again = template.render(guarded)
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
    return _encode(tokenizer, again, mark)


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

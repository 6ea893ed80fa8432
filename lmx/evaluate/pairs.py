"""Texts → the token ids whose likelihood is asked for.

A continuation is encoded together with its context, so that the tokens at the boundary
are those of the whole text: of the ids of both, those past the number that the context
alone has are the continuation's. White space at the end of a context goes to the
continuation first, where most tokenizers want it. This is what EleutherAI's
lm-evaluation-harness does, so scores can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lmx.inputs.tokenizers import Tokenizer


class Scored(NamedTuple):
    """Token ids, of which the last `targets` are scored given all before them.

    The first `prompt` of them are one: where a model reads it in both directions.
    """

    ids: list[int]
    targets: int
    prompt: int = 0


def encode_pairs(
    tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]], *, markup: bool = False
) -> list[Scored]:
    """Returns each (context, continuation) as ids.

    A context begins as a text of training, with `tokenizer.prefix_ids`; an empty one is
    the end-of-text token (or BOS) alone. In `markup`, what a chat template wrote,
    special tokens are spelled out.
    """
    moved = [_spaces_moved(*pair) for pair in pairs]
    wholes = encode_texts(tokenizer, [a + b for a, b in moved], markup=markup)
    contexts = dict.fromkeys(a for a, _ in moved)
    encoded = encode_texts(tokenizer, list(contexts), markup=markup)
    ids_of = dict(zip(contexts, encoded, strict=True))
    found = []
    for (context, _), whole in zip(moved, wholes, strict=True):
        before = ids_of[context]
        continuation = whole[len(before) :]
        first = beginning(tokenizer, before)
        if not before and not first:
            first = [start_id(tokenizer)]
        asked = [*first, *before]
        found.append(Scored([*asked, *continuation], len(continuation), len(asked)))
    return found


def encode_texts(
    tokenizer: Tokenizer, texts: Sequence[str], *, markup: bool
) -> list[list[int]]:
    """Returns the ids of each text, or of what a chat template wrote."""
    if markup:
        return [tokenizer.encode_markup(text) for text in texts]
    return tokenizer.encode_batch(texts)


def beginning(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    """Returns the prefix of a text, but for markup that spells it."""
    first = list(tokenizer.prefix_ids)
    return [] if first and list(ids[: len(first)]) == first else first


def _spaces_moved(context: str, continuation: str) -> tuple[str, str]:
    bare = context.rstrip()
    return bare, context[len(bare) :] + continuation


def start_id(tokenizer: Tokenizer) -> int:
    """Returns the token that stands before a text: the first prefix, or BOS."""
    return tokenizer.prefix_ids[0] if tokenizer.prefix_ids else tokenizer.bos_id


def rolling(ids: Sequence[int], *, start: int, size: int) -> list[Scored]:
    """Returns windows that score each of `ids` once, after `start`.

    Windows hold up to `size` targets and do not overlap, but that the last is filled
    with what is before it; the first token of each is context only.
    """
    whole = [start, *ids]
    windows = []
    for done in range(0, len(ids), size):
        count = min(size, len(ids) - done)
        end = done + count + 1
        windows.append(Scored(whole[max(0, end - size - 1) : end], count))
    return windows

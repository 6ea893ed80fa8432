"""Plain texts with a part to restore: spans that were taken out, or the rest of a text.

    span corruption    a b <0> e f <1>  →  <0> c d <1> g <2> END
    prefix             a b c            →  d e f g END

Both are of Raffel et al., "Exploring the limits of transfer learning with a unified
text-to-text transformer", 2020 (sections 3.1.4 and 3.2.3); the first is what T5 was
trained on. Long texts are cut into examples of at most `chunk_tokens` tokens, nearly
alike in length. What is drawn depends on the text alone, so a build can be repeated.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from lmx.core.errors import DataError, UserError
from lmx.inputs.chat import ChatTemplate
from lmx.inputs.example import Encoder, Example, Format, Record
from lmx.inputs.tokenizers import Tokenizer

SHARE = 0.15  # of the tokens that are taken out
MEAN_SPAN = 3.0
CHUNK_TOKENS, FEWEST_CHUNK_TOKENS = 512, 8

Cut = Callable[[Sequence[int], np.ndarray], tuple[list[int], list[int]]]
"""Of a chunk's ids and random numbers, as many: what is given, and what is learned."""


def noise_of(tokens: int) -> tuple[int, int]:
    """Returns how many of a chunk's tokens are taken out, and in how many spans."""
    noise = min(max(round(tokens * SHARE), 1), tokens - 1)
    spans = min(max(round(noise / MEAN_SPAN), 1), tokens - noise)
    return noise, spans


# One for each span, and one that ends the last.
SENTINELS = tuple(f"<extra_id_{n}>" for n in range(noise_of(CHUNK_TOKENS)[1] + 1))


def corrupt(
    ids: Sequence[int], drawn: np.ndarray, *, sentinels: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Returns ids with sentinels in place of spans, and the spans after theirs.

    What is kept and what is taken out take turns, the former first; all ways to cut
    each into so many parts are as likely.
    """
    noise, spans = noise_of(len(ids))
    taken = _parts(noise, spans, drawn[:noise])
    kept = _parts(len(ids) - noise, spans, drawn[noise:])
    given: list[int] = []
    learned: list[int] = []
    start = 0
    for sentinel, stays, goes in zip(sentinels, kept, taken, strict=False):
        given += [*ids[start : start + stays], sentinel]
        start += stays + goes
        learned += [sentinel, *ids[start - goes : start]]
    return given, [*learned, sentinels[spans]]


def _parts(count: int, parts: int, drawn: np.ndarray) -> list[int]:
    """Returns the sizes, 1 or more, of `count` items cut into so many parts."""
    ends = 1 + np.argsort(drawn[: count - 1], kind="stable")[: parts - 1]
    return np.diff(np.sort(ends), prepend=0, append=count).tolist()


def _divide(ids: Sequence[int], drawn: np.ndarray) -> tuple[list[int], list[int]]:
    """Returns both parts of a chunk, cut at any of its places."""
    cut = 1 + int(drawn[0]) % (len(ids) - 1)
    return list(ids[:cut]), list(ids[cut:])


def _spans(tokenizer: Tokenizer, template: ChatTemplate) -> Encoder:
    del template
    ids_of = {t.content: index for index, t in tokenizer.special_tokens.items()}
    missing = [name for name in SENTINELS if name not in ids_of]
    if missing:
        raise UserError(
            f"format 'span_corruption' needs a tokenizer with the special tokens "
            f"{SENTINELS[0]} to {SENTINELS[-1]}, as those of T5 have them, and "
            f"{missing[0]} is not there; set tokenizer='bpe' to train one"
        )
    sentinels = [ids_of[name] for name in SENTINELS]

    def cut(ids: Sequence[int], drawn: np.ndarray) -> tuple[list[int], list[int]]:
        return corrupt(ids, drawn, sentinels=sentinels)

    return _encoder(tokenizer, cut, always_ends=True)


def _prefixes(tokenizer: Tokenizer, template: ChatTemplate) -> Encoder:
    del template
    return _encoder(tokenizer, _divide, always_ends=False)


def _encoder(tokenizer: Tokenizer, cut: Cut, *, always_ends: bool) -> Encoder:
    """Returns what makes an example of each chunk of a text.

    A chunk's answer ends where the text does, or `always_ends`.
    """
    first = list(tokenizer.prefix_ids)

    def encode(record: Record) -> list[Example]:
        text, examples = record["text"], []
        seed = hashlib.sha256(text.encode()).digest()
        chunks = list(_chunks(tokenizer.encode(text), _chunk_tokens(record)))
        for number, ids in enumerate(chunks):
            given, learned = cut(ids, _drawn(seed, number, len(ids)))
            size = _size(tokenizer, learned)
            if always_ends or number + 1 == len(chunks):
                learned.append(tokenizer.eos_id)
            weights = [0] * (len(first) + len(given)) + [1] * len(learned)
            examples.append(Example([*first, *given, *learned], weights, size))
        return examples

    return encode


def _chunks(ids: Sequence[int], most: int) -> Iterator[Sequence[int]]:
    """Yields ids in pieces of at most so many, as alike in length as can be."""
    if len(ids) < 2:
        raise DataError("the text has one token: nothing of it can be left to say")
    count = -(-len(ids) // most)
    ends = [len(ids) * number // count for number in range(count + 1)]
    for start, end in itertools.pairwise(ends):
        yield ids[start:end]


def _drawn(seed: bytes, number: int, count: int) -> np.ndarray:
    """Returns random numbers, uint64 [count], of a chunk of a text."""
    content = hashlib.shake_256(b"%d " % number + seed)
    return np.frombuffer(content.digest(8 * count), "<u8")


def _size(tokenizer: Tokenizer, ids: Sequence[int]) -> int:
    """Returns how many bytes ids stand for: spans may begin within a character."""
    if tokenizer.pieces is None:
        return len(tokenizer.decode(ids).encode())
    return sum(len(tokenizer.piece(index)) for index in ids)


def _chunk_tokens(record: Record) -> int:
    return int(record.get("chunk_tokens", CHUNK_TOKENS))


def _problem(record: Record) -> str | None:
    if not record["text"].strip():
        return "no text"
    tokens = str(record.get("chunk_tokens", CHUNK_TOKENS))
    if tokens.isdecimal() and FEWEST_CHUNK_TOKENS <= int(tokens) <= CHUNK_TOKENS:
        return None
    return (
        f"chunk_tokens={tokens!r:.20} is not a number from {FEWEST_CHUNK_TOKENS} to "
        f"{CHUNK_TOKENS}"
    )


FIELDS, OPTIONAL = ("text", "chunk_tokens"), ("chunk_tokens",)
SPAN_CORRUPTION = Format(
    FIELDS, _problem, _spans, specials=SENTINELS, optional=OPTIONAL
)
PREFIX = Format(FIELDS, _problem, _prefixes, optional=OPTIONAL)

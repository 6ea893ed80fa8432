"""What a tokenizer makes of a text: how many tokens, which of them, and what is lost.

Everything follows from how often each id occurs and from the size of the text, so the
numbers of a whole are those of its parts' sums. How well a model learns from the tokens
is not here: that takes training one.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from lmx.curate.words import find_words
from lmx.inputs.tokenizers import Tokenizer

Array = np.ndarray

TEXTS_AT_ONCE = 256


class TextSize(NamedTuple):
    """How much text there is, whatever the tokenizer.

    Attributes:
      documents: texts.
      bytes: of their UTF-8.
      words: runs of letters, digits and marks; in scripts that put no space between
        words (Chinese, Japanese, Thai, …), letters (see `lmx.curate.words`).
    """

    documents: int = 0
    bytes: int = 0
    words: int = 0

    def plus(self, other: TextSize) -> TextSize:
        """Returns the size of both."""
        return TextSize(*map(sum, zip(self, other, strict=True)))


@dataclasses.dataclass(frozen=True)
class TokenizerMeasure:
    """A tokenizer on a text, in counts; the properties are the ratios people compare.

    Attributes:
      size: of the text.
      tokens: without those that begin or end a document.
      vocabulary: ids that text can become, special tokens apart.
      used: how many of these occur.
      unknown: tokens that stand for text which is not in the vocabulary.
      partial: tokens that hold no whole characters, only some bytes of one.
      hidden_bytes: bytes of the text that unknown tokens stand for, where they can be
        counted.
    """

    size: TextSize
    tokens: int
    vocabulary: int
    used: int
    unknown: int
    partial: int
    hidden_bytes: int

    @property
    def bytes_per_token(self) -> float:
        """Mean UTF-8 bytes of a token: more is shorter."""
        return self.size.bytes / max(1, self.tokens)

    @property
    def fertility(self) -> float:
        """Tokens per word (Rust et al. 2021, arXiv:2012.15613); 1 is a word each."""
        return self.tokens / max(1, self.size.words)

    @property
    def used_share(self) -> float:
        """Share of the vocabulary that occurs."""
        return self.used / max(1, self.vocabulary)

    @property
    def unknown_share(self) -> float:
        """Share of tokens that are unknown."""
        return self.unknown / max(1, self.tokens)

    @property
    def partial_share(self) -> float:
        """Share of tokens that are bytes of a character (byte fallback)."""
        return self.partial / max(1, self.tokens)


class TokenizerMeter:
    """Counts the ids of texts and reads them as a `TokenizerMeasure`."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer

    def counts(self, texts: Iterable[str]) -> Array:
        """Returns how often each id occurs in the texts, int64 [V]."""
        total = np.zeros(self._tokenizer.vocab_size, np.int64)
        rest = iter(texts)
        while some := list(itertools.islice(rest, TEXTS_AT_ONCE)):
            rows = self._tokenizer.encode_batch(some)
            ids = np.concatenate([np.asarray(row, np.int64) for row in rows])
            total += np.bincount(ids, minlength=len(total))
        return total

    def measure(self, counts: Array, size: TextSize) -> TokenizerMeasure:
        """Returns what the counts of a text of this size mean."""
        unknown = self._unknown_id
        hidden = 0
        if unknown is not None and self._tokenizer.pieces is not None:
            known = counts * self._lengths
            hidden = max(0, size.bytes - int(known.sum() - known[unknown]))
            hidden *= bool(counts[unknown])
        special = list(self._tokenizer.special_tokens)
        return TokenizerMeasure(
            size=size,
            tokens=int(counts.sum()),
            vocabulary=len(counts) - len(special),
            used=int(np.count_nonzero(np.delete(counts, special))),
            unknown=0 if unknown is None else int(counts[unknown]),
            partial=int(counts[self._partial].sum()),
            hidden_bytes=hidden,
        )

    @functools.cached_property
    def _unknown_id(self) -> int | None:
        """The id of what is not in the vocabulary; others' files name it themselves."""
        tokenizer = self._tokenizer
        if tokenizer.unk_id is not None:
            return tokenizer.unk_id
        model = json.loads(tokenizer.content).get("model", {})
        if isinstance(model.get("unk_id"), int):
            return model["unk_id"]
        name = model.get("unk_token")
        ids = range(tokenizer.vocab_size)
        return next((i for i in ids if name and tokenizer.token(i) == name), None)

    @functools.cached_property
    def _lengths(self) -> Array:
        return np.array([len(piece) for piece in self._tokenizer.pieces or []])

    @functools.cached_property
    def _partial(self) -> Array:
        """Which ids hold bytes that are no whole characters, bool [V]."""
        pieces = self._tokenizer.pieces
        if pieces is None:
            return np.zeros(self._tokenizer.vocab_size, bool)
        return np.array([not _whole(piece) for piece in pieces])


def text_size(texts: Iterable[str]) -> TextSize:
    """Returns the size of texts."""
    total = TextSize()
    for text in texts:
        found = TextSize(1, len(text.encode()), len(find_words(text).starts))
        total = total.plus(found)
    return total


def hidden_bits_per_byte(measure: TokenizerMeasure) -> float:
    """Returns what writing out the text behind unknown tokens would cost, at 8 bits.

    A model that predicts an unknown token has not said which word it is: added to its
    bits per byte, this makes it comparable with one that has.
    """
    return 8 * measure.hidden_bytes / max(1, measure.size.bytes)


def _whole(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True

"""Passages of evaluation texts in documents: what is tested must not be trained on.

Texts are compared by their letters and digits alone, so case, punctuation, blanks and
line breaks hide nothing (as for GPT-4, arXiv:2303.08774, appendix C); passages are runs
of 13 words (as for GPT-3, arXiv:2005.14165, appendix C). Paraphrases are not found.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from lmx.core.errors import UserError
from lmx.curate.hashing import Sums, mix
from lmx.curate.words import OTHER, Words, find_words

Array = np.ndarray

TABLE_BITS = 20  # of the table that rules out most positions at once


class Level(NamedTuple):
    """Passages of similar length, sorted by a hash of their first letters."""

    prefix: int  # how many letters are the first ones
    keys: Array  # uint64 [passages], sorted: hashes of their first letters
    hashes: Array  # uint64 [passages]: hashes of all their letters
    lengths: Array  # int64 [passages]: how many letters
    possible: Array  # bool [2^20]: whether a key ends in these bits

    @classmethod
    def of(cls, prefix: int, values: Array, spans: Array) -> Level:
        """Returns the passages `values[start:end]` of spans int64 [2, passages]."""
        sums = Sums.of(values)
        starts, ends = spans
        keys = sums.spans(starts, starts + prefix)
        order = np.argsort(keys, kind="stable")
        possible = np.zeros(1 << TABLE_BITS, bool)
        possible[_last_bits(keys)] = True
        hashes = sums.spans(starts, ends)[order]
        return cls(prefix, keys[order], hashes, (ends - starts)[order], possible)

    def find(self, sums: Sums) -> tuple[int, int] | None:
        """Returns where in a text's letters the first passage is, or None."""
        windows = sums.windows(self.prefix)
        positions = np.flatnonzero(self.possible[_last_bits(windows)])
        if not len(positions):
            return None
        first = np.searchsorted(self.keys, windows[positions], side="left")
        counts = np.searchsorted(self.keys, windows[positions], side="right") - first
        if not counts.any():
            return None
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        passages = np.repeat(first, counts) + within
        starts = np.repeat(positions, counts)
        ends = starts + self.lengths[passages]
        fits = ends < len(sums.prefix)
        starts, ends, passages = starts[fits], ends[fits], passages[fits]
        same = sums.spans(starts, ends) == self.hashes[passages]
        if not same.any():
            return None
        hit = int(np.argmax(same))
        return int(starts[hit]), int(ends[hit])


class NGrams(NamedTuple):
    """The passages to look for."""

    levels: tuple[Level, ...]
    texts: int
    skipped: int  # those that were too short to look for

    @classmethod
    def of(cls, texts: Iterable[str], *, n: int = 13, least: int = 5) -> NGrams:
        """Returns the passages of `texts`: each run of `n` words.

        A text of fewer words is one passage; with fewer than `least` it would be found
        everywhere, and is `skipped`. In unspaced scripts 2 letters (Chinese, Japanese)
        or 4 stand for a word.
        """
        if not 0 < least <= n:
            raise UserError(f"least={least} must be between 1 and n={n}, in words")
        count = skipped = done = 0
        letters, spans = [np.zeros(0, np.uint64)], [np.zeros((2, 0), np.int64)]
        for text in texts:
            count += 1
            found, _, values = _letters(_fold(text))
            scale = found.letters_per_word
            if len(found.starts) < least * scale:
                skipped += 1
                continue
            size = min(n * scale, len(found.starts))
            before = np.concatenate([[0], np.cumsum(found.kinds != OTHER)])
            starts = before[found.starts[: len(found.starts) - size + 1]]
            spans.append(np.stack([starts, before[found.ends[size - 1 :]]]) + done)
            letters.append(values)
            done += len(values)
        values, joined = np.concatenate(letters), np.concatenate(spans, axis=1)
        sizes = 2 ** np.floor(np.log2(joined[1] - joined[0])).astype(np.int64)
        levels = [
            Level.of(int(size), values, joined[:, sizes == size])
            for size in np.unique(sizes)
        ]
        return cls(tuple(levels), count, skipped)

    def leak(self, text: str) -> str | None:
        """Returns a passage that `text` has, in lower case, or None."""
        folded = _fold(text)
        _, places, letters = _letters(folded)
        sums = Sums.of(letters)
        for level in reversed(self.levels):
            if (span := level.find(sums)) is not None:
                start, last = places[span[0]], places[span[1] - 1]
                return " ".join(folded[start : last + 1].split())
        return None


def _fold(text: str) -> str:
    """Returns `text` without the differences of spelling that do not count."""
    return unicodedata.normalize("NFKC", text).casefold().replace("_", " ")


def _letters(folded: str) -> tuple[Words, Array, Array]:
    """Returns the words, and the places and hashes of the letters, digits and marks."""
    found = find_words(folded)
    places = np.flatnonzero(found.kinds != OTHER)
    return found, places, mix(found.codes[places])


def _last_bits(hashes: Array) -> Array:
    return hashes & np.uint64((1 << TABLE_BITS) - 1)

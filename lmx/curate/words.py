"""The words of a text in any script, as positions and as hashes.

A word is a run of letters, digits, marks and underscores. In scripts that put no space
between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese, …) every letter with its
marks is a word of its own: no dictionary is needed, and windows of words still mean
something. Not a tokenizer of models: that is `lmx.inputs`.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from typing import NamedTuple

import numpy as np

from lmx.curate.hashing import hash_spans, mix

Array = np.ndarray

OTHER, LETTER, DIGIT, MARK, UNSPACED = range(5)

# Blocks of the scripts whose words are not parted by spaces.
UNSPACED_BLOCKS = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x1950, 0x19DF),  # Tai Le, New Tai Lue
    (0x1A20, 0x1AAF),  # Tai Tham
    (0x1B00, 0x1B7F),  # Balinese
    (0x2E80, 0x2FDF),  # CJK radicals
    (0x3005, 0x3007),  # CJK marks that stand for a character
    (0x3040, 0x312F),  # Hiragana, Katakana, Bopomofo
    (0x31A0, 0x31FF),
    (0x3400, 0x4DBF),  # CJK ideographs
    (0x4E00, 0xA4CF),  # and Yi
    (0xA980, 0xA9FF),  # Javanese, Myanmar extended
    (0xAA60, 0xAADF),  # Myanmar extended, Tai Viet
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),
    (0x1B000, 0x1B16F),  # Kana supplements
    (0x20000, 0x323AF),
)
FIRST_CHINESE = 0x2E80  # from here on they are Chinese, Japanese and Yi
JOINERS = ("\u200c", "\u200d")  # within words of Persian and of Indic scripts
_LAST = 0x323B0  # past it stand only variation selectors, tags and private use


class Words(NamedTuple):
    """Where the words of a text are; positions count code points."""

    codes: Array  # uint32 [n]: the code points of the text
    kinds: Array  # uint8 [n]: OTHER … UNSPACED of each
    starts: Array  # int64 [words]
    ends: Array  # int64 [words]

    @property
    def unspaced(self) -> bool:
        """Whether most words are letters of scripts without spaces between words."""
        return 2 * int(np.count_nonzero(self.kinds == UNSPACED)) > len(self.starts)

    @property
    def letters_per_word(self) -> int:
        """How many of these words make a word: 1, and 2 or 4 in unspaced scripts."""
        if not self.unspaced:
            return 1
        letters = self.codes[self.kinds == UNSPACED]
        return 2 if np.median(letters) >= FIRST_CHINESE else 4

    def hashes(self) -> Array:
        """Returns a hash of each word, case and all, uint64 [words]."""
        return hash_spans(mix(self.codes), self.starts, self.ends)


@functools.cache
def kind_table() -> Array:
    """Returns the kind of every code point, uint8 [0x110000]."""
    table = np.zeros(0x110000, np.uint8)
    kinds = {"L": LETTER, "N": DIGIT, "M": MARK}
    table[:_LAST] = [
        kinds.get(unicodedata.category(chr(code))[0], OTHER) for code in range(_LAST)
    ]
    table[0xE0100:0xE01F0] = MARK
    table[[ord("_")]] = LETTER
    table[[ord(joiner) for joiner in JOINERS]] = MARK
    for first, last in UNSPACED_BLOCKS:
        block = table[first : last + 1]
        block[block == LETTER] = UNSPACED
    table.setflags(write=False)
    return table


@functools.cache
def mark_class() -> str:
    """Returns the body of a regular expression's class of all combining marks."""
    codes = np.flatnonzero(kind_table() == MARK)
    runs = np.split(codes, np.flatnonzero(np.diff(codes) > 1) + 1)
    return "".join(f"{re.escape(chr(r[0]))}-{re.escape(chr(r[-1]))}" for r in runs)


def code_points(text: str) -> Array:
    """Returns the code points of `text`, uint32 [n]; lone surrogates stay."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def find_words(text: str) -> Words:
    """Returns where the words of `text` are."""
    codes = code_points(text)
    kinds = kind_table()[codes]
    inside = kinds != OTHER
    before = np.zeros_like(kinds)  # the kind of what precedes, marks apart
    before[1:] = kinds[:-1]
    if (kinds == MARK).any():
        carriers = np.where(kinds == MARK, 0, np.arange(len(kinds)))
        before[1:] = kinds[np.maximum.accumulate(carriers)][:-1]
        before[1:][~inside[:-1]] = OTHER
    carries = inside & (kinds != MARK)
    starting = (kinds == UNSPACED) | (carries & (before == UNSPACED))
    starting[1:] |= inside[1:] & ~inside[:-1]
    starting[:1] |= inside[:1]
    ending = inside.copy()
    ending[:-1] &= ~inside[1:] | starting[1:]
    return Words(codes, kinds, np.flatnonzero(starting), np.flatnonzero(ending) + 1)


def words(text: str) -> list[str]:
    """Returns the words of `text`."""
    found = find_words(text)
    spans = zip(found.starts.tolist(), found.ends.tolist(), strict=True)
    return [text[start:end] for start, end in spans]


def phrase_hashes(text: str) -> Array:
    """Returns the hashes of the words of `text`, whatever their case, uint64."""
    return find_words(text.casefold()).hashes()

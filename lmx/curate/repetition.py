"""The rule that drops texts which say the same thing again and again (Gopher).

What repeats within one document counts here; what repeats across documents is the
matter of `minhash` and `substrings`.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from lmx.curate.hashing import hash_windows
from lmx.curate.words import Words, find_words

Array = np.ndarray

TOP_NGRAMS = (0.20, 0.18, 0.16)  # of 2, 3, 4 words
DUPLICATE_NGRAMS = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)  # of 5 … 10 words
PARAGRAPHS = re.compile(r"\n\s*\n")
LEAST_WORDS = 50  # Gopher's shortest document; in shorter ones any name repeats
LEAST_COUNT = 4  # of the most frequent n-gram


def repetition(
    *,
    lines: float = 0.30,
    paragraphs: float = 0.30,
    line_characters: float = 0.20,
    paragraph_characters: float = 0.20,
    top_ngrams: tuple[float, ...] = TOP_NGRAMS,
    duplicate_ngrams: tuple[float, ...] = DUPLICATE_NGRAMS,
) -> Callable[[str], str | None]:
    """Drops texts of which too much was there before.

    The shares, and the thresholds that are the defaults, are those of Gopher (Rae et
    al. 2021, table A1): repeated lines and paragraphs by number and by characters, the
    characters of the most frequent 2- to 4-gram, and those of 5- to 10-grams that stood
    earlier in the text. A line without any word (a bracket, a rule) is no line here.
    N-grams are not counted below 50 words, nor the most frequent one below four times:
    in a paragraph on Puerto Rico its name has a fifth of the characters. In unspaced
    scripts two letters stand for a word in Chinese and Japanese, four in the others.
    For code give `top_ngrams=(), duplicate_ngrams=()`.
    """

    def judge(text: str) -> str | None:
        for parts, most, most_characters, what in (
            (text.split("\n"), lines, line_characters, "lines"),
            (PARAGRAPHS.split(text), paragraphs, paragraph_characters, "paragraphs"),
        ):
            share, of_characters = repeated_parts(parts)
            if share > most:
                return f"{share:.0%} of {what} are repeated"
            if of_characters > most_characters:
                return f"{of_characters:.0%} of characters are in repeated {what}"
        found = find_words(text)
        hashes, scale = found.hashes(), found.letters_per_word
        if len(hashes) < LEAST_WORDS * scale:
            return None
        for size, most in enumerate(top_ngrams, 2):
            if (share := top_share(found, hashes, size * scale)) > most:
                return f"one {size}-gram has {share:.0%} of characters"
        for size, most in enumerate(duplicate_ngrams, 5):
            share = duplicate_share(found, hashes, size * scale)
            if share > most:
                return f"{share:.0%} of characters are in repeated {size}-grams"
            if share <= min(duplicate_ngrams):
                break  # longer ones are within these: their share is not larger
        return None

    return judge


def repeated_parts(parts: list[str]) -> tuple[float, float]:
    """Returns which share of the parts stood earlier, by number and by characters."""
    parts = [part.strip() for part in parts]
    parts = [part for part in parts if any(map(str.isalnum, part))]
    count = characters = 0
    seen: set[str] = set()
    for part in parts:
        if part in seen:
            count, characters = count + 1, characters + len(part)
        seen.add(part)
    total = sum(map(len, parts))
    return count / max(len(parts), 1), characters / max(total, 1)


def top_share(found: Words, hashes: Array, size: int) -> float:
    """Returns the share of the words' characters in the most frequent n-gram.

    `hashes` are those of the words, `size` is n. Of equally frequent ones the longest
    counts; one that occurs less than four times does not.
    """
    grams = hash_windows(hashes, size)
    if not len(grams):
        return 0.0
    _, first, counts = np.unique(grams, return_index=True, return_counts=True)
    if counts.max() < LEAST_COUNT:
        return 0.0
    lengths = found.ends - found.starts
    reach = np.concatenate([[0], np.cumsum(lengths)])
    top = first[counts == counts.max()]
    longest = int((reach[top + size] - reach[top]).max())
    return min(1.0, longest * int(counts.max()) / int(reach[-1]))


def duplicate_share(found: Words, hashes: Array, size: int) -> float:
    """Returns the share of the words' characters in n-grams that stood earlier.

    A character in several such n-grams counts once.
    """
    grams = hash_windows(hashes, size)
    if not len(grams):
        return 0.0
    again = np.ones(len(grams), np.int64)
    again[np.unique(grams, return_index=True)[1]] = 0
    edges = np.zeros(len(hashes) + 1, np.int64)
    edges[: len(grams)] = again
    edges[size:] -= again
    covered = np.cumsum(edges)[:-1] > 0
    lengths = found.ends - found.starts
    return int(lengths[covered].sum()) / int(lengths.sum())

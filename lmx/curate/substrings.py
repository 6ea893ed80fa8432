"""Passages that stand in more than one place: all but their first copy are cut.

After Lee et al. 2022, Deduplicating Training Data Makes Language Models Better
(arXiv:2107.06499), whose passages are 50 tokens and whose index is a suffix array; here
they are 50 words, letter by letter the same, and the index is the hashes of windows, so
that it can be built by grouping. Two passes: collect `window_hashes` of all documents,
then give `cut` those that a preferred document has. Documents that are alike as a whole
are the matter of `minhash`.
"""

from __future__ import annotations

import numpy as np

from lmx.curate.hashing import hash_windows
from lmx.curate.words import find_words

Array = np.ndarray


def window_hashes(text: str, *, n: int = 50) -> Array:
    """Returns the different hashes of runs of `n` words of `text`, uint64, sorted.

    Case counts; blanks and punctuation do not. A letter of an unspaced script is a
    word. Shorter texts have none.
    """
    return np.unique(hash_windows(find_words(text).hashes(), n))


def cut(text: str, held: Array, *, n: int = 50) -> tuple[str, int]:
    """Returns `text` without its repeated passages, and how many characters went.

    A passage of `n` words or more goes if its windows are among `held`, sorted hashes
    that a preferred document has, or stood earlier in `text` itself. What follows its
    last word up to a blank goes with it. `n` is that of `window_hashes`.
    """
    found = find_words(text)
    windows = hash_windows(found.hashes(), n)
    if not len(windows):
        return text, 0
    again = np.ones(len(windows), bool)
    again[np.unique(windows, return_index=True)[1]] = False
    if len(held):
        nearest = np.minimum(np.searchsorted(held, windows), len(held) - 1)
        again |= held[nearest] == windows
    edges = np.zeros(len(found.starts) + 1, np.int64)
    edges[: len(windows)] = again
    edges[n:] -= again
    covered = np.cumsum(edges)[:-1] > 0
    bounds = np.flatnonzero(np.diff(covered, prepend=False, append=False))
    kept, position = "", 0
    for first, past in bounds.reshape(-1, 2).tolist():
        start, end = int(found.starts[first]), int(found.ends[past - 1])
        if past == len(covered):
            end = len(text)
        while end < len(text) and not text[end].isspace() and end < found.starts[past]:
            end += 1
        kept = _join(kept, text[position:start])
        position = end
    kept = _join(kept, text[position:]) if position else text
    return kept, len(text) - len(kept)


def _join(before: str, after: str) -> str:
    """Returns two parts of a text that were apart, parted as a line or as a word."""
    left, right = before.rstrip(), after.lstrip()
    if not left or not right:
        return left + right
    breaks = before.count("\n", len(left)), after.count("\n", 0, -len(right))
    return left + ("\n" * min(2, max(breaks)) or " ") + right

"""The rule that drops texts full of words from a list: the user's, in a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from lmx.core.errors import DataError
from lmx.curate.hashing import hash_windows
from lmx.curate.words import find_words, phrase_hashes


def toxicity(*, path: str, most: float = 0.01) -> Callable[[str], str | None]:
    """Drops texts of which more than `most` of the words are on a list.

    The list is a UTF-8 file with a word or a phrase per line; case does not matter. It
    matches words, not parts of words. Raises `DataError` where the file cannot be read
    or is empty.
    """
    try:
        lines = Path(path).read_text(encoding="utf8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"toxicity: path={path!r} cannot be read ({error}); it must be UTF-8 text "
            "with a word or phrase per line"
        ) from error
    phrases: dict[int, list[int]] = {}  # size → hashes of the phrases of that size
    for line in lines:
        if len(hashes := phrase_hashes(line)):
            gram = hash_windows(hashes, len(hashes))
            phrases.setdefault(len(hashes), []).append(int(gram[0]))
    if not phrases:
        raise DataError(f"toxicity: no word in path={path!r}; it needs one per line")
    wanted = {size: np.array(grams, np.uint64) for size, grams in phrases.items()}

    def judge(text: str) -> str | None:
        found = find_words(text.casefold())
        hashes = found.hashes()
        listed = np.zeros(len(hashes), bool)
        for size, grams in wanted.items():
            for start in np.flatnonzero(np.isin(hash_windows(hashes, size), grams)):
                listed[start : start + size] = True
        share = np.count_nonzero(listed) / max(len(hashes), 1)
        return f"{share:.1%} of words are on the list" if share > most else None

    return judge

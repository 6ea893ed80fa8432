from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmx.curate.repetition import (
    LEAST_COUNT,
    duplicate_share,
    repeated_parts,
    repetition,
    top_share,
)
from lmx.curate.words import find_words, words

PROSE = (
    "Rain fell upon the harbour all night and by morning every boat had turned its "
    "bow towards the open sea. Fishermen stood under the eaves of the market, talking "
    "about prices, about nets, about a cousin who had gone north to build railways. "
    "Nobody believed the forecast; the old woman who sold lamps said that her knee had "
    "never once been wrong, and that it would clear before noon."
)
WORDS = st.lists(st.sampled_from(["a", "to", "the", "sea", "中"]), max_size=40)


@given(WORDS, st.integers(2, 6))
def test_shares_of_ngrams_are_those_of_lists_of_words(drawn, size):
    """Reference: counting tuples of words in a loop."""
    text = " ".join(drawn)
    found, listed = find_words(text), words(text)
    total = sum(map(len, listed))
    grams = [tuple(listed[i : i + size]) for i in range(len(listed) - size + 1)]
    counts, seen, covered = Counter(grams), set(), set()
    for i, gram in enumerate(grams):
        if gram in seen:
            covered.update(range(i, i + size))
        seen.add(gram)
    most = max(counts.values(), default=0)
    longest = max((len("".join(g)) for g, c in counts.items() if c == most), default=0)
    top = min(1.0, longest * most / total) if most >= LEAST_COUNT else 0.0
    assert top_share(found, found.hashes(), size) == pytest.approx(top)
    duplicates = sum(len(listed[i]) for i in covered) / max(total, 1)
    assert duplicate_share(found, found.hashes(), size) == pytest.approx(duplicates)


def test_shares_of_repeated_lines_by_hand():
    lines = ["one two", "}", "one two", "three", "", "  one two"]
    assert repeated_parts(lines) == (2 / 4, 14 / 26)
    assert repeated_parts([]) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("one line\nanother line\none line\none line", "lines are repeated"),
        ("a long line of many words\n" * 2 + "b\nc\nd\ne\nf", "in repeated lines"),
        ("s\n\ns\n\ns\n\nabc\nbcd\ncde\ndef\nefg", "paragraphs are"),
        (PROSE + " buy now" * 20, "one 2-gram"),
        (PROSE + " " + PROSE[20:120], "repeated 5-grams"),
        ("购买我们的产品就能得到幸福" * 12, "one 2-gram"),
    ],
)
def test_what_repeats_is_dropped(text, reason):
    assert reason in (repetition()(text) or "kept")


def test_prose_and_names_are_kept():
    judge = repetition()
    assert judge(PROSE) is None
    assert judge("Puerto Rico is Puerto Rico: Puerto Rico, Puerto Rico.") is None
    assert judge("") is None
    code = "if a:\n    x()\n}\n" + "".join(f"y{i}()\n}}\n" for i in range(9))
    assert judge(code) is None
    assert repetition(lines=1.0, line_characters=1.0)("a\n" * 5) is None

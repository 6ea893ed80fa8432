from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmx.curate.substrings import cut, window_hashes
from lmx.curate.words import words

NOTHING = np.zeros(0, np.uint64)
FOOTER = (
    "All rights reserved; see the licence, which is at the usual place for details."
)
WORDS = st.lists(st.sampled_from(["ab", "c", "d", "e"]), max_size=30)


def deduplicated(texts: list[str], n: int) -> list[str]:
    """Returns the texts without what an earlier one holds."""
    seen, left = NOTHING, []
    for text in texts:
        hashes = window_hashes(text, n=n)
        left.append(cut(text, np.intersect1d(hashes, seen), n=n)[0])
        seen = np.union1d(seen, hashes)
    return left


@given(st.lists(WORDS, max_size=5), st.integers(2, 5))
def test_what_goes_are_the_runs_that_stood_before(documents, n):
    """Reference: tuples of words, looked up in what came earlier, one by one."""
    texts = [" ".join(document) for document in documents]
    seen: dict[tuple[str, ...], int] = {}
    expected = []
    for index, document in enumerate(documents):
        gone: set[int] = set()
        own: set[tuple[str, ...]] = set()
        for i in range(len(document) - n + 1):
            run = tuple(document[i : i + n])
            if run in own or seen.get(run, index) != index:
                gone.update(range(i, i + n))
            own.add(run)
            seen.setdefault(run, index)
        kept = [word for i, word in enumerate(document) if i not in gone]
        expected.append(kept)
    assert [words(text) for text in deduplicated(texts, n)] == expected


def test_a_footer_stays_in_the_first_document_only():
    texts = [f"Document {i} says {i * 7}.\n\n{FOOTER}\n\n{i} pages" for i in range(4)]
    cleaned = deduplicated(texts, 8)
    assert cleaned[0] == texts[0]
    assert cleaned[1:] == [
        f"Document {i} says {i * 7}.\n\n{i} pages" for i in (1, 2, 3)
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Here it is: {} And on.", "Here it is: And on."),
        ("Above\n{}\nbelow", "Above\nbelow"),
        ("Above\n\n{}", "Above"),
        ("{}\nbelow", "below"),
        ("({}) more", "( more"),
        ("all new", "all new"),
    ],
)
def test_what_is_left_reads_on(text, expected):
    text = text.format(FOOTER)
    held = window_hashes(FOOTER, n=8)
    assert cut(text, held, n=8) == (expected, len(text) - len(expected))


def test_a_text_that_repeats_itself_keeps_the_first_copy():
    draw = random.Random(7)
    passage = " ".join(str(draw.randrange(10**6)) for _ in range(60))
    text = f"{passage}.\n\nBetween.\n\n{passage}.\n\nEnd."
    assert cut(text, NOTHING) == (f"{passage}.\n\nBetween.\n\nEnd.", len(passage) + 3)
    assert cut(passage, NOTHING) == (passage, 0)
    assert cut(passage, window_hashes(passage)) == ("", len(passage))


def test_the_first_copy_is_never_lost():
    """All words of all documents are still somewhere, whatever was cut."""
    draw = random.Random(8)
    pool = [" ".join(str(draw.randrange(10**6)) for _ in range(40)) for _ in range(8)]
    texts = ["\n".join(draw.choices(pool, k=5)) for _ in range(12)]
    kept = set(" ".join(deduplicated(texts, 20)).split())
    assert kept == set(" ".join(texts).split())
    assert len(" ".join(deduplicated(texts, 20))) < 0.4 * len(" ".join(texts))


def test_blanks_and_punctuation_do_not_count_but_case_does():
    assert (window_hashes("a b, c\nd", n=4) == window_hashes("a b c d", n=4)).all()
    assert (window_hashes("A b c d", n=4) != window_hashes("a b c d", n=4)).all()
    assert len(window_hashes("too short", n=4)) == 0

from __future__ import annotations

import re
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmx.curate.hashing import hash_spans, hash_windows, mix
from lmx.curate.words import find_words, phrase_hashes, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one  two,three\n4", ["one", "two", "three", "4"]),
        ("snake_case(x)", ["snake_case", "x"]),
        ("कि की क्षेत्र", ["कि", "की", "क्षेत्र"]),  # marks belong to their letters
        ("مي\u200cخواهم", ["مي\u200cخواهم"]),
        ("中文2字", ["中", "文", "2", "字"]),
        ("ที่Debian", ["ที่", "Debian"]),
        ("Größe naïve", ["Größe", "naïve"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("… — !", []),
        ("", []),
    ],
)
def test_words_of_many_scripts(text, expected):
    assert words(text) == expected


@given(st.text())
def test_words_cover_exactly_the_letters_digits_and_marks(text):
    """Reference: the general category of each character by itself."""
    covered = set()
    found = find_words(text)
    for start, end in zip(found.starts, found.ends, strict=True):
        assert start < end
        assert covered.isdisjoint(range(start, end))
        covered.update(range(start, end))
    assert covered == {
        i
        for i, character in enumerate(text)
        if unicodedata.category(character)[0] in "LNM" or character in "_\u200c\u200d"
    }


@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_words_of_ascii_are_those_of_a_regular_expression(text):
    assert words(text) == re.findall(r"\w+", text)


@given(st.lists(st.sampled_from(["a", "b", "ab", "ba", "中", "é"]), max_size=30))
def test_equal_words_and_only_they_have_equal_hashes(drawn):
    text = " ".join(drawn)
    hashes = find_words(text).hashes().tolist()
    assert len(hashes) == len(drawn)
    assert len(set(hashes)) == len(set(drawn))
    assert len(set(zip(hashes, drawn, strict=True))) == len(set(drawn))


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 6))
def test_windows_hash_alike_exactly_when_they_are_alike(values, size):
    """Reference: the tuples themselves."""
    hashes = hash_windows(mix(np.array(values, np.uint64)), size).tolist()
    tuples = [tuple(values[i : i + size]) for i in range(len(values) - size + 1)]
    assert len(hashes) == len(tuples)
    assert len(set(zip(hashes, tuples, strict=True))) == len(set(tuples))
    assert len(set(hashes)) == len(set(tuples))


def test_spans_of_zeros_differ_by_length():
    values = np.zeros(4, np.uint64)
    hashes = hash_spans(values, np.zeros(5, int), np.arange(5))
    assert len(set(hashes.tolist())) == 5


def test_a_hash_is_the_same_in_every_process():
    code = (
        "from lmx.curate.words import phrase_hashes;"
        "print(phrase_hashes('Déjà vu 中').tolist())"
    )
    for seed in ("1", "2"):
        command = [sys.executable, "-c", code]
        env = {"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(p for p in sys.path if p)}
        output = subprocess.run(command, env=env, check=True, capture_output=True)
        assert output.stdout.decode().strip() == str(
            phrase_hashes("déjà VU 中").tolist()
        )

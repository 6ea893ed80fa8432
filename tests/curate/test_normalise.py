from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmx.curate.normalise import fingerprint, normalise

ANY_TEXT = st.text(alphabet=st.characters(codec=None), max_size=60)
TROUBLE = st.text(alphabet="a \t\n\r\x00\x1b[3m\u0344\u0301\ud83d\ude00\ufeff\u2028é")


@given(ANY_TEXT | TROUBLE)
def test_twice_is_once_and_the_result_can_be_stored(text):
    """Reference: the Unicode database, character by character."""
    once = normalise(text)
    assert normalise(once) == once
    once.encode("utf8")
    assert unicodedata.is_normalized("NFC", once)
    assert not any(unicodedata.category(c) == "Cc" for c in once if c not in "\n\t")
    assert once.splitlines() == (once.split("\n") if once else [])
    assert "\n\n\n\n" not in once
    assert all(line == line.rstrip() for line in once.split("\n"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def f():\n    return 1  \n\n\n\tx", "def f():\n    return 1\n\n\n\tx"),
        ("a\r\nb\rc\u2028d\x0ce", "a\nb\nc\nd\ne"),
        ("e\u0301", "é"),
        ("nul\x00 and \x1b[1;31mred\x1b[0m", "nul and red"),
        ("\ufeffstart", "start"),
        ("\ud83d\ude00 \ud83d", "😀 \ufffd"),
        ("a\n\n\n\n\n\n\nb", "a\n\n\nb"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("“quoted” — and…", "“quoted” — and…"),
    ],
)
def test_one_spelling(text, expected):
    assert normalise(text) == expected


def test_a_million_marks_on_one_letter_take_linear_time():
    """Composing them all takes hours: that this ends is the test."""
    assert len(normalise("a" + "\u0301\u0323" * 500_000)) <= 32


def test_copies_share_a_fingerprint():
    copies = [
        "Hello, World! It's  me.",
        "hello world\nit's me",
        "«HELLO» world it’s me",
    ]
    assert len({fingerprint(copy) for copy in copies}) == 1
    assert len(fingerprint("")) == 16


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1.5 miles", "15 miles"),
        ("कि", "की"),
        ("a + b", "a > b"),
        ("…", "!"),
        ("therapist", "the rapist"),
    ],
)
def test_texts_that_mean_something_else_do_not(one, other):
    assert fingerprint(one) != fingerprint(other)


@given(ANY_TEXT)
def test_any_text_has_a_fingerprint_that_ignores_case_of_ascii(text):
    assert len(fingerprint(text)) == 16
    assert fingerprint(text + " End") == fingerprint(text + " eND ")

from __future__ import annotations

import random
import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmx.core.errors import UserError
from lmx.curate.contamination import NGrams

rng = random.Random(5)
VOCABULARY = ["".join(rng.choices(string.ascii_lowercase, k=6)) for _ in range(2000)]
QUESTIONS = [
    " ".join(rng.choices(VOCABULARY, k=rng.randint(5, 60))) for _ in range(200)
]
CLEAN = [" ".join(rng.choices(VOCABULARY, k=300)) for _ in range(50)]


def disguised(text: str, style: int) -> str:
    words = text.split()
    if style == 0:
        return text.upper()
    if style == 1:
        return "\n".join(f"“{word}”," for word in words)
    if style == 2:
        return " ".join(word[:3] + "-\n" + word[3:] for word in words)
    if style == 3:
        return "_".join(words)
    return "  ".join(word.title() + ";" for word in words)


def test_every_planted_leak_is_found_and_no_clean_text_is_accused():
    """Reference: it is known where the passages were planted."""
    grams = NGrams.of(QUESTIONS)
    assert grams.skipped == 0
    draw = random.Random(6)
    for index, question in enumerate(QUESTIONS):
        words = question.split()
        start = draw.randint(0, max(len(words) - 13, 0))
        passage = disguised(" ".join(words[start : start + 13]), index % 5)
        clean = CLEAN[index % len(CLEAN)]
        found = grams.leak(f"{clean}\n{passage} {clean}")
        assert found is not None
        letters = re.sub(r"[\W_]", "", found)
        assert letters in question.replace(" ", "")
    assert [grams.leak(text) for text in CLEAN] == [None] * len(CLEAN)


def test_twelve_words_of_a_longer_text_are_no_leak():
    question = QUESTIONS[0] + " " + QUESTIONS[1]
    words = question.split()
    assert len(words) > 13
    grams = NGrams.of([question])
    assert grams.leak(" ".join(words[1:13])) is None
    assert grams.leak(" ".join(words[1:14])) == " ".join(words[1:14])


def test_short_texts_are_passages_as_a_whole_and_the_shortest_are_skipped():
    grams = NGrams.of(["What is the capital of France?", "Name a fruit.", ""])
    assert grams.skipped == 2
    assert grams.leak("He asked: what's … no, what is the Capital of\nFrance? — Paris")
    assert grams.leak("the capital of France") is None
    assert grams.leak("Name a fruit.") is None
    assert NGrams.of([]).leak("anything at all") is None
    assert grams.leak("") is None
    with pytest.raises(UserError, match="between 1 and n=3"):
        NGrams.of([], n=3)


def test_punctuation_within_words_hides_nothing():
    grams = NGrams.of(["Don't the U.S. co-ops re-elect 3,000 well-known members?"])
    for text in (
        "dont the us coops reelect 3000 well known members",
        "don’t the U. S. co ops re elect 3 000 wellknown members",
        "ＤＯＮ'Ｔ THE US CO-OPS RE-ELECT ３０００ WELL-KNOWN MEMBERS",
    ):
        assert grams.leak(text) is not None


def test_chinese_and_thai_are_found():
    chinese = "人人有权享有生命自由和人身安全任何人不得使为奴隶或奴役一切形式的奴隶制度"
    thai = "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ"
    grams = NGrams.of([chinese, thai])
    assert grams.leak("前言。" + "，".join(chinese[:30]) + "。") is not None
    assert grams.leak(chinese[:20]) is None
    assert grams.leak("ก " + thai) is not None


@given(st.lists(st.text(alphabet="abcé中 .\n", max_size=40), max_size=4), st.data())
def test_a_text_leaks_itself(texts, data):
    """Reference: a search for the letters of each passage of words, as strings."""
    grams = NGrams.of(texts, n=3, least=1)
    document = data.draw(st.text(alphabet="abcé中 .\n", max_size=60))

    def letters(text: str) -> str:
        return re.sub(r"\W", "", text)

    passages = []
    for text in texts:
        words = re.findall(r"中|[abcé]+", text)
        unspaced = 2 * text.count("中") > len(words)
        n, least = (6, 2) if unspaced else (3, 1)
        if len(words) >= least:
            size = min(n, len(words))
            starts = range(len(words) - size + 1)
            passages += ["".join(words[i : i + size]) for i in starts]
    expected = any(passage in letters(document) for passage in passages)
    found = grams.leak(document)
    assert (found is not None) == expected
    if found is not None:
        assert letters(found) in passages

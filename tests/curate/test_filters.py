from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmx.core.errors import DataError, UserError
from lmx.curate.filters import FILTERS, make_filter

ENGLISH = (
    "The house stood at the end of the lane, and nobody had lived in it for years. "
    "We were told that it was to be sold with all of the land around it."
)
CHINESE = "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心。"
THAI = "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ ต่างมีเหตุผลและมโนธรรม"
ARABIC = "يولد جميع الناس أحراراً متساوين في الكرامة والحقوق، وقد وهبوا عقلاً وضميراً."
HINDI = "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।"
KOREAN = "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다."
WRAPPED = (
    "A tool for text that\nis wrapped at a column,\nas descriptions are, with\n" * 4
)
RULES = [n for n in FILTERS if n not in ("language", "toxicity", "quality")]


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("text", [ENGLISH, CHINESE, THAI, ARABIC, HINDI, KOREAN])
def test_good_texts_pass_each_rule_by_default(name, text):
    foreign = text in (ARABIC, HINDI, KOREAN)
    settings = {"words": text.split()} if name == "stop_words" and foreign else {}
    assert make_filter(name, settings)(text) is None


PLANTED = {
    "length": ["", "too few words", "字" * 9],
    "word_length": ["a b c d e f g h", "q" * 200],
    "symbols": ["# a # b # c # d", "so … and … then ... yes"],
    "bullets": ["• one\n• two\n• three", "- a\n- b\n\n- c"],
    "ellipses": ["Read more…\nA line.\nSee all...\nAnother."],
    "alphabetic": ["1 2 3 4 5 6 seven eight", "3.14 2,000 € — 17", "?!"],
    "stop_words": ["cheap watches, cheap shoes", "Alle Menschen sind frei"],
    "sentence_ends": ["Home\nAbout us\nContact\nv1.2 notes", "主页\n关于\n联系"],
    "curly_bracket": ["function f(){return {a:{b:1}}}"],
    "lorem_ipsum": ["Here: Lorem ipsum dolor sit amet."],
}


@pytest.mark.parametrize(
    ("name", "text"),
    [(name, text) for name, texts in PLANTED.items() for text in texts],
)
def test_planted_texts_are_dropped_with_a_short_reason(name, text):
    reason = make_filter(name, {})(text)
    assert reason
    assert len(reason) < 80
    assert "\n" not in reason


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("symbols", "################\n# A heading\n" + ENGLISH),
        ("bullets", "- a single line"),
        ("bullets", "-1\n-2\n-3"),  # numbers
        ("ellipses", "A single line that was cut…"),
        ("sentence_ends", WRAPPED + "an end."),
        ("sentence_ends", ENGLISH + " Signed: A. Name"),
        ("curly_bracket", 2 * ENGLISH + " {sic}"),
        ("lorem_ipsum", ENGLISH + " It is called lorem ipsum."),
        ("word_length", "Hash: " + "f" * 64 + " of it all, and of the rest"),
    ],
)
def test_neighbours_of_the_planted_texts_are_kept(name, text):
    assert make_filter(name, {})(text) is None


def test_reasons_tell_the_number():
    lines = "x…\n" * 41 + "y.\n" * 59
    assert make_filter("ellipses", {})(lines) == "41% of lines end in an ellipsis"
    assert make_filter("length", {"least": 3})("a b") == "2 words, fewer than 3"
    reason = make_filter("length", {"least": 1, "most": 1})("a b")
    assert reason == "2 words, more than 1"


def test_stop_words_of_another_language():
    judge = make_filter("stop_words", {"words": ("der", "und", "ist"), "least": 2})
    assert judge("Der Hund und die Katze") is None
    assert judge("the dog and the cat") == "0 stop words, fewer than 2"
    with pytest.raises(UserError, match="single words"):
        make_filter("stop_words", {"words": ("der Hund",), "least": 1})


def test_wrong_names_are_named():
    with pytest.raises(UserError, match="did you mean 'length'"):
        make_filter("lenght", {})
    with pytest.raises(UserError, match="'leest'; did you mean 'least'"):
        make_filter("length", {"leest": 3})
    with pytest.raises(UserError, match="needs 'path'"):
        make_filter("toxicity", {})


@given(st.text())
def test_any_text_is_judged(text):
    for name in RULES:
        reason = make_filter(name, {})(text)
        assert reason is None or 0 < len(reason) < 80


def test_a_list_of_words_and_phrases(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("Badword\n\nquite bad\n坏话\n", encoding="utf8")
    judge = make_filter("toxicity", {"path": str(path), "most": 0.0})
    assert judge("one BADWORD here") == "33.3% of words are on the list"
    assert judge("this is quite, bad") == "50.0% of words are on the list"
    assert judge("这是坏话") == "50.0% of words are on the list"
    assert judge("badwords are not the same; bad is quite fine") is None
    assert judge("") is None
    assert (
        make_filter("toxicity", {"path": str(path), "most": 0.4})("a badword b") is None
    )


def test_a_missing_or_empty_list_is_named(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        make_filter("toxicity", {"path": str(tmp_path / "none.txt")})
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match="no word"):
        make_filter("toxicity", {"path": str(tmp_path / "empty.txt")})


def test_languages_with_thresholds_of_their_own():
    pytest.importorskip("py3langid")
    judge = make_filter("language", {"languages": {"en": 0.5, "ko": 0.9}})
    assert judge(ENGLISH) is None
    assert judge(KOREAN) is None
    assert judge(ARABIC) == "language ar"
    never = make_filter("language", {"languages": ("en", "ar"), "least": 1.1})
    assert "but only" in never(ENGLISH)
    assert judge("\n".join([ARABIC] * 200)) == "language ar"
    with pytest.raises(UserError, match="did you mean 'en'"):
        make_filter("language", {"languages": ("eng",)})


def test_without_its_library_the_language_rule_names_the_extra(monkeypatch):
    from lmx.curate import language

    monkeypatch.setitem(sys.modules, "py3langid", None)
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    language._identifier.cache_clear()
    with pytest.raises(UserError, match=r"lmx\[data\]"):
        make_filter("language", {"languages": ("en",)})
    language._identifier.cache_clear()

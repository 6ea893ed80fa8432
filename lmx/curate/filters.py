"""Judges of documents: a text → None to keep it, or a short reason to drop it.

`FILTERS` has a factory per rule; what it takes are that rule's settings. The rules are
those of Gopher (Rae et al. 2021, arXiv:2112.11446, table A1), C4 (Raffel et al. 2020,
arXiv:1910.10683) and FineWeb (Penedo et al. 2024, arXiv:2406.17557); where a default
differs from theirs, the rule says so and why. Not here: copies of other documents
(`minhash`, `substrings`, `contamination`), and what is masked, not dropped (`masking`).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lmx.core.errors import UserError, did_you_mean, pick
from lmx.curate.language import language
from lmx.curate.lexicon import toxicity
from lmx.curate.quality import quality
from lmx.curate.repetition import PARAGRAPHS, repetition
from lmx.curate.words import (
    FIRST_CHINESE,
    LETTER,
    OTHER,
    UNSPACED,
    code_points,
    find_words,
    kind_table,
    phrase_hashes,
)

Judge = Callable[[str], str | None]

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
BULLET = re.compile(r"\s*(?:[•‣⁃▪▫◦●○■□▶►◆◇·*+–—-]\s|[•‣⁃▪▫◦●○■□▶►◆◇])")
SYMBOLS = re.compile(r"#+|…+|\.{3,}")
ELLIPSES = ("…", "...")
CLOSERS = "\"'”’»›)]}」』）】〕*_`"
# Where a sentence ends, in the scripts that mark it: signs that also part numbers and
# abbreviations only before a blank.
SENTENCE_END = re.compile(
    rf"(?:[.!?…‼⁇⁈⁉]|፡፡)[{re.escape(CLOSERS)}]*(?:\s|$)"
    "|[。！？．｡।॥۔؟։՜՞።፧፨။។៕៚།༎᙮᠃᠉߹܀܁܂᱾᱿꯫꓿꘎꛳⸮᪨᪩᪪᪫᭞᭟꧈꧉\U00011141-\U00011143]"
)
BLANKS = np.array([c for c in range(0x3001) if chr(c).isspace()], np.uint32)
SYLLABLES = ((0x1200, 0x137F), (0xAC00, 0xD7A3))  # Ethiopic, Hangul


def length(*, least: int = 10, most: int = 1_000_000) -> Judge:
    """Drops texts of fewer than `least` or more than `most` words.

    Gopher's 50 to 100,000 are meant for web pages: they drop most descriptions,
    answers and poems, and every book. A letter of an unspaced script is a word.
    """

    def judge(text: str) -> str | None:
        count = len(find_words(text).starts)
        if count < least:
            return f"{count} words, fewer than {least}"
        return f"{count} words, more than {most}" if count > most else None

    return judge


def word_length(*, least: float = 1.5, most: float = 16.0) -> Judge:
    """Drops texts whose words have fewer or more letters than that on average.

    Gopher's 3 to 10 are meant for English: they drop Hindi, Fon and Greenlandic. A
    syllable of Hangul or of Ethiopic counts as two letters. Passes unspaced scripts.
    """

    def judge(text: str) -> str | None:
        found = find_words(text)
        if found.unspaced or not len(found.starts):
            return None
        letters = np.count_nonzero(found.kinds != OTHER)
        for first, last in SYLLABLES:
            letters += np.count_nonzero((found.codes >= first) & (found.codes <= last))
        mean = letters / len(found.starts)
        if least <= mean <= most:
            return None
        return f"words of {mean:.1f} letters on average, not {least:g} to {most:g}"

    return judge


def symbols(*, most: float = 0.1) -> Judge:
    """Drops texts with more than `most` hash signs or ellipses per word (Gopher).

    A run of them, as in a ruled line, counts once. Not for sources of C.
    """

    def judge(text: str) -> str | None:
        runs = SYMBOLS.findall(text)
        hashes = sum(run[0] == "#" for run in runs)
        allowed = max(1, most * len(find_words(text).starts))
        for count, what in ((hashes, "#"), (len(runs) - hashes, "…")):
            if count > allowed:
                return f"{count} {what}, more than {most:g} per word"
        return None

    return judge


def bullets(*, most: float = 0.9) -> Judge:
    """Drops texts of which more than `most` of the lines are bullets (Gopher)."""
    return _share_of_lines(
        lambda line: BULLET.match(line) is not None, most, "are bullets"
    )


def ellipses(*, most: float = 0.3) -> Judge:
    """Drops texts of which more than `most` of the lines end in "…" (Gopher)."""
    return _share_of_lines(
        lambda line: line.endswith(ELLIPSES), most, "end in an ellipsis"
    )


def alphabetic(*, least: float = 0.8) -> Judge:
    """Drops texts of which fewer than `least` of the words have a letter (Gopher).

    Words are here what stands between blanks, in any script; signs alone (of a formula,
    a list, a table) are none. Passes unspaced scripts.
    """

    def judge(text: str) -> str | None:
        found = find_words(text)
        if found.unspaced:
            return None
        blank = np.isin(found.codes, BLANKS)
        starts = np.flatnonzero(~blank & np.concatenate([[True], blank[:-1]]))
        if not len(found.starts):
            return "no words"
        lettered = (found.kinds == LETTER) | (found.kinds == UNSPACED)
        with_letter = np.count_nonzero(np.maximum.reduceat(lettered, starts))
        words = np.count_nonzero(np.maximum.reduceat(found.kinds != OTHER, starts))
        share = with_letter / words
        return f"{share:.0%} of words have a letter" if share < least else None

    return judge


def stop_words(*, words: Sequence[str] = STOP_WORDS, least: int = 2) -> Judge:
    """Drops texts with fewer than `least` of these `words`, repeated or not (Gopher).

    For sources in one language: the default words are English, and a text in another
    language is dropped. Passes unspaced scripts.
    """
    wanted = phrase_hashes(" ".join(words))
    if len(wanted) != len(words) or not 0 < least <= len(words):
        raise UserError(
            f"stop_words: words={tuple(words)!r} must be single words, at least "
            f"least={least} of them; give words=('le', 'la', …)"
        )

    def judge(text: str) -> str | None:
        found = find_words(text.casefold())
        if found.unspaced:
            return None
        count = np.count_nonzero(np.isin(found.hashes(), wanted))
        return f"{count} stop words, fewer than {least}" if count < least else None

    return judge


def sentence_ends(*, least: float = 0.12) -> Judge:
    """Drops texts in which fewer than `least` of the lines have the end of a sentence.

    The threshold is FineWeb's; C4 wants it of each line. Where text is wrapped at some
    column the paragraphs count; where a line is a paragraph the end may stand within.
    Passes Thai, Lao, Khmer and their like, which need not mark it. Not for code.
    """

    def judge(text: str) -> str | None:
        codes = code_points(text)
        unspaced = kind_table()[codes] == UNSPACED
        if 4 * np.count_nonzero(unspaced & (codes < FIRST_CHINESE)) > len(codes):
            return None
        share = 0.0
        for parts in (text.split("\n"), PARAGRAPHS.split(text)):
            parts = [part for part in parts if part and not part.isspace()]
            ends = sum(SENTENCE_END.search(part) is not None for part in parts)
            share = max(share, ends / max(len(parts), 1))
        if share >= least:
            return None
        return f"{share:.0%} of lines have the end of a sentence"

    return judge


def curly_bracket(*, most: float = 0.01) -> Judge:
    """Drops texts of which more than `most` of the characters are curly brackets.

    `most=0` is C4's rule, which drops a page for one bracket; this keeps prose that
    quotes code and still drops scripts. Not for sources of code.
    """

    def judge(text: str) -> str | None:
        count = text.count("{") + text.count("}")
        if count <= most * len(text):
            return None
        return f"{count} curly brackets, more than {most:.1%} of characters"

    return judge


def lorem_ipsum(*, phrase: str = "lorem ipsum dolor") -> Judge:
    """Drops texts with the printers' filler (C4).

    C4 looks for its first two words, with which pages about it are dropped as well.
    """

    def judge(text: str) -> str | None:
        return f"has {phrase!r}" if phrase in text.casefold() else None

    return judge


def _share_of_lines(matches: Callable[[str], bool], most: float, what: str) -> Judge:
    """Returns a judge that drops texts with more than `most` such lines, and two."""

    def judge(text: str) -> str | None:
        lines = [line.rstrip() for line in text.split("\n")]
        lines = [line for line in lines if line]
        count = sum(map(matches, lines))
        if count < 2 or count <= most * len(lines):
            return None
        return f"{count / len(lines):.0%} of lines {what}"

    return judge


FILTERS: dict[str, Callable[..., Judge]] = {
    "length": length,
    "word_length": word_length,
    "symbols": symbols,
    "bullets": bullets,
    "ellipses": ellipses,
    "alphabetic": alphabetic,
    "stop_words": stop_words,
    "sentence_ends": sentence_ends,
    "curly_bracket": curly_bracket,
    "lorem_ipsum": lorem_ipsum,
    "repetition": repetition,
    "language": language,
    "toxicity": toxicity,
    "quality": quality,
}


def make_filter(name: str, settings: Mapping[str, object]) -> Judge:
    """Returns the judge of that name; `UserError` names a wrong filter or setting."""
    factory = pick(FILTERS, name, "filter")
    known = inspect.signature(factory).parameters
    for setting in settings:
        if setting not in known:
            raise UserError(
                f"filter {name!r} has no setting {setting!r}"
                + did_you_mean(setting, known)
            )
    needed = [k for k, p in known.items() if p.default is p.empty and k not in settings]
    if needed:
        raise UserError(
            f"filter {name!r} needs {needed[0]!r}; give it in its settings: "
            f"{{{needed[0]!r}: …}}"
        )
    return factory(**settings)

"""One spelling of a text, and the fingerprint that two copies of it share.

Nothing that a reader sees is changed: indentation, quotation marks and blank lines
stay. Not here: copies that differ in a few words (`minhash`, `substrings`).
"""

from __future__ import annotations

import functools
import hashlib
import re
import unicodedata

from lmx.curate.words import JOINERS, mark_class

LINE_ENDS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
TERMINAL_CODES = re.compile(r"\x1b\[[0-9;?]*+[ -/]*+[@-~]")
# Controls but tab and line feed, byte order marks, and code points that never will be
# characters.
INVISIBLE = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ufeff\ufffe\uffff\ufdd0-\ufdef]")
BLANK_LINES = re.compile(r"\n{4,}")
MOST_MARKS = 30  # Unicode's Stream-Safe Text Format, UAX #15


def normalise(text: str) -> str:
    r"""Returns `text` in the one spelling it is stored in; twice is as good as once.

    Characters are composed (NFC) and line ends are `\n`; control characters, NUL,
    terminal colours, byte order marks and blanks at line ends are gone; at most two
    lines in a row are blank; half a surrogate pair is U+FFFD. More than 30 marks upon
    one letter are cut off: no script needs them, and composing them takes quadratic
    time.
    """
    if not text.isascii():
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    text = LINE_ENDS.sub("\n", text)
    text = INVISIBLE.sub("", TERMINAL_CODES.sub("", text))
    if not text.isascii():
        text = unicodedata.normalize("NFC", _many_marks().sub(r"\1", text))
        text = _many_marks().sub(r"\1", text)  # some marks decompose into two
    text = "\n".join([line.rstrip() for line in text.split("\n")])
    return BLANK_LINES.sub("\n\n\n", text).strip("\n")


def fingerprint(text: str) -> bytes:
    """Returns 16 bytes that texts share which differ in case, blanks or punctuation.

    A text without any letter, digit or symbol is compared as it is.
    """
    content = " ".join(_separators().split(text.casefold())).strip() or text
    encoded = content.encode("utf8", "surrogatepass")
    return hashlib.blake2b(encoded, digest_size=16).digest()


@functools.cache
def _many_marks() -> re.Pattern[str]:
    marks = mark_class()
    return re.compile(f"([{marks}]{{{MOST_MARKS}}})[{marks}]++")


@functools.cache
def _separators() -> re.Pattern[str]:
    """Returns what matches a run of blanks, punctuation and joiners."""
    points = [c for c in map(chr, range(0x10000)) if unicodedata.category(c)[0] == "P"]
    return re.compile(f"[\\s{re.escape(''.join(points))}{''.join(JOINERS)}]++")

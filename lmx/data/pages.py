"""Pages of the web: the text that is their matter, and what they say of its use.

Needs resiliparse (extra `web`). What is made to keep a parser busy is refused by
counting, never by a clock, so that any machine gives the same result.
"""

from __future__ import annotations

import importlib
import re
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

from lmx.core.errors import UserError
from lmx.data import streams
from lmx.data.places import FileEntry
from lmx.data.record import Record

Headers = dict[str, list[str]]
LONGEST_PAGE = 8 << 20
# A parser's time grows with elements times their depth, and with the square of the
# attributes of one element; no page that people read comes near. Attributes are looked
# for behind every '<', and so read again where they hold one: that is bounded too.
WORK, ATTRIBUTES = 1 << 24, 2000
UNDECODED = 0.01  # of the letters of a page
TAG = re.compile(rb"<(/?)([a-zA-Z][^\s/>]*+)")
ATTRIBUTE = (
    rb"[\s/]++[^\s/>][^\s/>=]*+"
    rb"""(?:\s*+=\s*+(?:"[^"]*+"|'[^']*+'|[^\s>]*+))?+"""
)
# All attributes of a tag, behind its name; the group is one too many.
FEW = re.compile(rb"(?:%b){0,%d}+(%b)?+" % (ATTRIBUTE, ATTRIBUTES - 1, ATTRIBUTE))
# Elements that have no content, or that end where the next begins.
FLAT = frozenset(
    b"area base br col embed hr img input link meta param source track wbr "
    b"p li dt dd tr td th option".split()
)
MARKS = (
    (b"\xef\xbb\xbf", "utf-8"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
)
# Not for a search engine, not for machines that learn; by TDMRep of the W3C, not for
# text and data mining. 'none' is 'noindex, nofollow'.
REFUSALS = frozenset(("noai", "noml", "noindex", "none"))
# X-Robots-Tag: rules that have a colon, and so look as if they named a crawler.
TDM = "*: tdm-reservation"
VALUED = re.compile(r"unavailable_after|max-[a-z-]+")


def read(entry: FileEntry, fields: Collection[str]) -> Iterator[Record]:
    """Yields the one page that an HTML file is."""
    del fields
    try:
        content = b"".join(streams.chunks(entry, most=LONGEST_PAGE))
    except streams.TooLong:
        long = f"a page of more than {LONGEST_PAGE >> 20} MB"
        yield Record(entry.name, {}, long)
        return
    yield page(entry.name, content, url="", date="", headers={})


def page(name: str, content: bytes, *, url: str, date: str, headers: Headers) -> Record:
    """Returns a page as a record, or what is wrong with it.

    Its fields are texts: `text`, its matter without menus and the like; `title`;
    `language`, as it says itself; `html`, all of it; `url`, where none is given that of
    its canonical link; `date` as given. Raises a `UserError` without resiliparse.
    """
    tree_of = library("resiliparse.parse.html").HTMLTree.parse
    extract = library("resiliparse.extract.html2text").extract_plain_text
    if hostile := _hostile(content):
        return Record(name, {}, hostile)
    html = _decoded(content, headers)
    if html.count("\ufffd") > UNDECODED * len(html):
        return Record(name, {}, "in no encoding that is known")
    try:
        tree = tree_of(html)
        root = tree.document.query_selector("html")
        language = root.getattr("lang") if root is not None else None
        found = {
            "text": extract(tree, main_content=True, alt_texts=False),
            "title": tree.title or "",
            "language": (language or "").partition("-")[0].strip().lower(),
            "html": html,
            "url": url or _canonical(tree),
            "date": date,
        }
        return Record(name, found, signals=tuple(_signals(tree, headers)))
    except BaseException as error:  # a panic of Rust is no Exception
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            return Record(name, {}, f"not to be parsed ({str(error)[:80]})")
        raise


def library(name: str) -> Any:
    """Returns a module of the extra `web`."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"pages of the web need {name.partition('.')[0]}; install it: "
            "pip install 'lmx[web]'"
        ) from error


def _hostile(content: bytes) -> str | None:
    """Returns why a page would keep a parser busy, if it would."""
    open_: Counter[bytes] = Counter()
    depth = deepest = count = looked = 0
    for tag in TAG.finditer(content):
        name = tag[2].lower()
        count += 1
        if not tag[1]:
            found = FEW.match(content, tag.end())
            assert found is not None  # it matches everything
            if found[1] is not None:
                return f"an element of more than {ATTRIBUTES:,} attributes"
            looked += found.end() - tag.end()
            if looked > WORK:
                return "tags within tags"
        if name in FLAT:
            continue
        if not tag[1]:
            open_[name] += 1
            depth += 1
            deepest = max(deepest, depth)
        elif open_[name]:
            open_[name] -= 1
            depth -= 1
    if count * deepest > WORK:
        return f"{count:,} tags, nested {deepest:,} deep"
    return None


def _decoded(content: bytes, headers: Headers) -> str:
    """Returns the letters of a page: by its mark, its header, itself, or a guess."""
    encodings = library("resiliparse.parse.encoding")
    declared = re.search(
        r"charset=[\s\"']*([\w.:-]+)", headers.get("content-type", [""])[-1], re.I
    )
    marked = next((name for mark, name in MARKS if content.startswith(mark)), None)
    name = declared and encodings.map_encoding_to_html5(declared[1], False)
    name = marked or name or encodings.detect_encoding(content, from_html_meta=True)
    if not marked and name and name.startswith("utf-16") and b"\0" not in content:
        name = "utf-8"  # so it could say that in single bytes
    try:
        return content.decode(name or "utf-8", "replace").removeprefix("\ufeff")
    except LookupError:
        return content.decode("utf-8", "replace").removeprefix("\ufeff")


def _canonical(tree: Any) -> str:
    for link in tree.document.query_selector_all("link[rel=canonical]"):
        href = (link.getattr("href") or "").strip()
        if re.match(r"https?://", href, re.IGNORECASE):
            return href
    return ""


def _signals(tree: Any, headers: Headers) -> Iterator[str]:
    """Yields what a page, or its answer's header, forbids to whom."""
    for value in headers.get("x-robots-tag", []):
        agent, colon, rules = value.partition(":")
        if not colon or "," in agent or VALUED.fullmatch(agent.strip().lower()):
            agent, rules = "*", value
        yield from _rules(agent, rules)
    for value in headers.get("tdm-reservation", []):
        if value.strip() == "1":
            yield TDM
    for meta in tree.document.query_selector_all("meta[name][content]"):
        name = meta.getattr("name").strip().lower()
        content = meta.getattr("content")
        if name == "tdm-reservation" and content.strip() == "1":
            yield TDM
        else:
            yield from _rules("*" if name == "robots" else name, content)


def _rules(agent: str, rules: str) -> Iterator[str]:
    for rule in rules.split(","):
        if (rule := rule.strip().lower()) in REFUSALS:
            yield f"{agent.strip().lower()}: {rule}"

"""What a reader yields: one record of a source, or why there is none."""

from __future__ import annotations

import json
from typing import Any, NamedTuple


class Record(NamedTuple):
    """One record of a source: its fields, unless it is damaged or of another kind."""

    name: str
    fields: dict[str, Any]
    problem: str | None = None
    """What is wrong with it; a source may have only few such."""
    other: str | None = None
    """Sound, but no document: of an archive of the web, a picture or a redirection."""
    signals: tuple[str, ...] = ()
    """What a page forbids, and to whom, as 'AGENT: DIRECTIVE', in small letters."""


def text_record(name: str, content: bytes) -> Record:
    """Returns the record whose `text` some bytes are, or what is wrong with them."""
    if problem := not_text(content):
        return Record(name, {}, problem)
    try:
        return Record(name, {"text": content.decode("utf-8-sig")})
    except UnicodeDecodeError as error:
        return Record(name, {}, f"not UTF-8 at byte {error.start}")


def not_text(content: bytes) -> str | None:
    """Returns what bytes are that are not text in UTF-8, where that can be told."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    return "binary" if b"\0" in content else None


def json_record(name: str, line: bytes) -> Record:
    """Returns the record that JSON spells, or what is wrong with it."""
    try:
        fields = json.loads(line)
    except UnicodeDecodeError as error:
        return Record(name, {}, f"not UTF-8 at byte {error.start}")
    except (ValueError, RecursionError) as error:
        return Record(name, {}, f"not JSON ({str(error)[:80]})")
    if not isinstance(fields, dict):
        return Record(name, {}, f"{type(fields).__name__}, not an object")
    return Record(name, fields)

"""What a reader yields: one record of a source, or why there is none."""

from __future__ import annotations

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

"""Documents in files, for training: each has a text, or the run does not begin.

A reader yields (name, text) and turns whatever is wrong with a file into a `DataError`
that names it and the remedy. How records are read is in `readers`; splitting and
duplicates are in `sources`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmx.core import errors
from lmx.data import places, readers
from lmx.data.places import FileEntry

BAD_SHARE = 0.05


def list_files(path: Path | str) -> list[FileEntry]:
    """Returns the regular files at or below `path`, or a URL, sorted by name.

    Raises a `DataError` where there is none.
    """
    found = places.find(str(path))
    if found is None:
        raise errors.DataError(f"there is no file or folder {str(path)!r}; mend it")
    return found.entries


def read_folder(
    entries: list[FileEntry], *, text_field: str, tally: Counter[str]
) -> Iterator[tuple[str, str]]:
    """Yields the documents of a folder: each text file is one.

    Files that are not UTF-8 text are counted as 'skipped'; a `DataError` names three of
    them when they are more than 5 %.
    """
    bad: list[str] = []
    for entry in entries:
        if holds_records(entry.name):
            yield from read_records(entry, text_field=text_field)
            continue
        (record,) = readers.read([entry], whole_files=True)
        if record.problem is None:
            yield record.name, record.fields["text"]
            continue
        bad.append(f"{entry.name} ({record.problem})")
        tally["skipped"] += 1
        if len(bad) > BAD_SHARE * len(entries):
            raise errors.DataError(
                f"more than {BAD_SHARE:.0%} of the {len(entries)} files are not UTF-8 "
                f"text, such as {', '.join(bad[:3])}; move them elsewhere, or convert "
                "them (iconv -f latin1 -t utf-8)"
            )


def read_single(entry: FileEntry, *, text_field: str) -> Iterator[tuple[str, str]]:
    """Yields the documents of one named file: records, or pieces of a text."""
    if holds_records(entry.name):
        yield from read_records(entry, text_field=text_field)
        return
    for record in readers.read([entry], whole_files=False):
        if record.problem is not None:
            raise NotTextError(entry.path, record.problem)
        yield record.name, record.fields["text"]


def read_text(entry: FileEntry) -> str:
    """Returns the text of a UTF-8 file, a leading byte order mark removed.

    Raises a `DataError` where it is binary, badly encoded, unreadable or gone.
    """
    record = readers.text_file(entry)
    if record.problem is not None:
        raise NotTextError(entry.path, record.problem)
    return record.fields["text"]


def holds_records(name: str) -> bool:
    """Returns whether a file of this name holds records, not a text."""
    return readers.reader_of(name) is not None


def read_records(entry: FileEntry, *, text_field: str) -> Iterator[tuple[str, str]]:
    """Yields `text_field` of each record; a null one is empty text.

    Raises a `DataError` for a missing field, with the nearest that is there, and for a
    value that is not text.
    """
    for name, value in read_field(entry, field=text_field):
        if not isinstance(value, str | None):
            raise errors.DataError(
                f"{name} of {entry.path}: field {text_field!r} holds "
                f"{type(value).__name__}, not text; set data.text_field to a field of "
                "text"
            )
        yield name, value or ""


def read_field(entry: FileEntry, *, field: str) -> Iterator[tuple[str, Any]]:
    """Yields the name that `read_records` gives each record, and its `field`.

    Raises a `DataError` for a missing field and for a file that holds no records.
    """
    if not holds_records(entry.name):
        raise errors.DataError(
            f"{entry.path} holds text, which has no field {field!r}; give records, "
            "such as JSON lines or Parquet"
        )
    for record in readers.read([entry], whole_files=True, fields=(field,)):
        if record.problem is not None:
            raise errors.DataError(
                f"{record.name} of {entry.path}: {record.problem}; mend or remove it"
            )
        if record.other is not None:  # of an archive, a picture or the like
            continue
        if field not in record.fields:
            raise errors.DataError(
                f"{record.name} of {entry.path} has no field {field!r}"
                f"{errors.did_you_mean(field, record.fields)} Set data.text_field, or "
                "the option that named it, to a field that is there."
            )
        yield record.name, record.fields[field]


class NotTextError(errors.DataError):
    """A file that is not UTF-8 text; a folder may hold a few."""

    def __init__(self, path: str, reason: str):
        super().__init__(
            f"{path} is not UTF-8 text ({reason}); give a text file, or convert it "
            "(iconv -f latin1 -t utf-8)"
        )

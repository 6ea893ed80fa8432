"""Documents in files: folders, text, JSON lines and parquet, plain or gzipped.

A reader yields (name, text) and turns whatever is wrong with a file into a `DataError`
that names it and the remedy. It neither splits nor removes duplicates (`sources`).
"""

from __future__ import annotations

import gzip
import json
import os
import stat
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lmx.core import errors

JSON_LINES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
PARQUET = (".parquet", ".pq")
BAD_SHARE = 0.05

SMALLEST_PIECE, LARGEST_PIECE, PIECES = 1_000, 16_000, 64


class FileEntry(NamedTuple):
    """A file as it was when it was listed; the cache key is made of these."""

    path: Path
    name: str
    size: int
    modified_ns: int


def list_files(path: Path) -> list[FileEntry]:
    """Returns the regular files at or below `path`, sorted by name.

    Hidden files and folders, `__pycache__`, and links to folders are left out. Raises a
    `DataError` where there is none.
    """
    if not path.is_dir():
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise errors.DataError(
                f"{path} is not a regular file; give a folder or a file of text"
            )
        return [FileEntry(path, path.name, info.st_size, info.st_mtime_ns)]
    found = []
    for folder, folders, names in os.walk(path, onerror=_refuse):
        folders[:] = [
            f for f in folders if not f.startswith(".") and f != "__pycache__"
        ]
        for name in names:
            file = Path(folder, name)
            try:
                info = file.stat()
            except OSError:  # a link to nowhere
                continue
            if name.startswith(".") or not stat.S_ISREG(info.st_mode):
                continue
            relative = file.relative_to(path).as_posix()
            found.append(FileEntry(file, relative, info.st_size, info.st_mtime_ns))
    if not found:
        raise errors.DataError(
            f"the folder {path} has no files (hidden ones do not count); "
            "put text files into it or set data.path to another"
        )
    return sorted(found, key=lambda entry: entry.name)


def read_folder(
    entries: list[FileEntry], *, text_field: str, tally: Counter[str]
) -> Iterator[tuple[str, str]]:
    """Yields the documents of a folder: each text file is one.

    Files that are not UTF-8 text are counted as 'skipped'; a `DataError` names three of
    them when they are more than 5 %.
    """
    bad: list[str] = []
    for entry in entries:
        if is_records(entry.path):
            yield from read_records(entry, text_field=text_field)
            continue
        try:
            yield entry.name, read_text(entry.path)
        except NotTextError as error:
            bad.append(f"{entry.name} ({error.reason})")
            tally["skipped"] += 1
        if len(bad) > BAD_SHARE * len(entries):
            raise errors.DataError(
                f"more than {BAD_SHARE:.0%} of the {len(entries)} files are not UTF-8 "
                f"text, such as {', '.join(bad[:3])}; move them elsewhere, or convert "
                "them (iconv -f latin1 -t utf-8)"
            )


def read_single(entry: FileEntry, *, text_field: str) -> Iterator[tuple[str, str]]:
    """Yields the documents of one named file: records, or pieces of a text."""
    if is_records(entry.path):
        yield from read_records(entry, text_field=text_field)
        return
    for number, piece in enumerate(split_text(read_text(entry.path))):
        yield f"{entry.name}#{number}", piece


def split_text(text: str) -> Iterator[str]:
    """Cuts one text into documents at blank lines, so that some can be held out.

    A piece ends at the first blank line after its size, which is 1/64 of the text but
    1,000 to 16,000 characters; where none comes within four sizes, at the last line
    end before that, or there. The pieces join to the text.
    """
    size = min(max(len(text) // PIECES, SMALLEST_PIECE), LARGEST_PIECE)
    start = 0
    while len(text) - start > size:
        limit = start + 4 * size
        cut = _blank_line(text, start + size, limit)
        if cut < 0:
            cut = text.rfind("\n", start, limit) + 1
        if cut <= start:
            cut = min(limit, len(text))
        yield text[start:cut]
        start = cut
    if start < len(text):
        yield text[start:]


def read_text(path: Path) -> str:
    """Returns the text of a UTF-8 file, a leading byte order mark removed.

    Raises a `DataError` where it is binary, badly encoded, unreadable or gone.
    """
    content = _read_bytes(path)
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise NotTextError(path, "UTF-16")
    if b"\0" in content:
        raise NotTextError(path, "binary")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 at byte {error.start}"
        raise NotTextError(path, reason) from error


def is_records(path: Path) -> bool:
    """Returns whether a file holds records (JSON lines or parquet) by its name."""
    return path.name.lower().endswith((*JSON_LINES, *PARQUET))


def read_records(entry: FileEntry, *, text_field: str) -> Iterator[tuple[str, str]]:
    """Yields `text_field` of each record; a null one is empty text.

    Raises a `DataError` for a missing field, with the nearest that is there, and for a
    value that is not text.
    """
    parquet = entry.path.name.lower().endswith(PARQUET)
    reader = _parquet if parquet else _json_lines
    for where, value in reader(entry.path, text_field):
        if not isinstance(value, str | None):
            raise errors.DataError(
                f"{where}: field {text_field!r} holds {type(value).__name__}, not "
                "text; set data.text_field to a field of text"
            )
        yield f"{entry.name}#{where.rpartition(' ')[2]}", value or ""


def read_field(entry: FileEntry, *, field: str) -> Iterator[tuple[str, Any]]:
    """Yields the name that `read_records` gives each record, and its `field`.

    Raises a `DataError` for a missing field and for a file that holds no records.
    """
    if not is_records(entry.path):
        raise errors.DataError(
            f"{entry.path} holds text, which has no field {field!r}; give JSON lines "
            "or Parquet"
        )
    parquet = entry.path.name.lower().endswith(PARQUET)
    reader = _parquet if parquet else _json_lines
    for where, value in reader(entry.path, field):
        yield f"{entry.name}#{where.rpartition(' ')[2]}", value


class NotTextError(errors.DataError):
    """A file that is not UTF-8 text; a folder may hold a few."""

    def __init__(self, path: Path, reason: str):
        self.reason = reason
        super().__init__(
            f"{path} is not UTF-8 text ({reason}); give a text file, or convert it "
            "(iconv -f latin1 -t utf-8)"
        )


def _blank_line(text: str, start: int, limit: int) -> int:
    """Returns where the line after the first blank line in a range begins, or -1."""
    ends = [
        at + len(mark)
        for mark in ("\n\n", "\n\r\n")
        if (at := text.find(mark, start, limit)) >= 0
    ]
    return min(ends, default=-1)


def _json_lines(path: Path, text_field: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(_lines(path), start=1):
        where = f"{path} line {number}"
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:  # bad JSON or not UTF-8
            raise errors.DataError(
                f"{where} is not JSON ({error}); mend or remove that line"
            ) from error
        if not isinstance(record, dict):
            raise errors.DataError(
                f"{where} holds {type(record).__name__}, not an object; write "
                f'lines such as {{"{text_field}": "…"}}'
            )
        if text_field not in record:
            raise _missing_field(where, text_field, record)
        yield where, record[text_field]


def _parquet(path: Path, text_field: str) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if text_field not in names:
                raise _missing_field(str(path), text_field, names)
            number = 0
            for batch in file.iter_batches(batch_size=1024, columns=[text_field]):
                for value in batch.column(0).to_pylist():
                    yield f"{path} row {number}", value
                    number += 1
    except (FileNotFoundError, PermissionError) as error:
        raise _unreadable(error, path) from error
    except (pyarrow.ArrowException, OSError) as error:
        raise errors.DataError(
            f"{path} is not a whole parquet file ({error}); fetch or write it again"
        ) from error


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with _open(path) as file:
            yield from file
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(error, path) from error


def _read_bytes(path: Path) -> bytes:
    try:
        with _open(path) as file:
            return file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(error, path) from error


def _open(path: Path) -> Any:
    return (
        gzip.open(path, "rb") if path.name.lower().endswith(".gz") else open(path, "rb")
    )


def _missing_field(where: str, field: str, names: Any) -> errors.DataError:
    return errors.DataError(
        f"{where} has no field {field!r}{errors.did_you_mean(field, names)} "
        "Set data.text_field, or the option that named it, to a field that is there."
    )


def _refuse(error: OSError) -> None:
    """Stops a walk at a folder that cannot be listed, rather than leaving it out."""
    raise _unreadable(error, error.filename) from error


def _unreadable(error: Exception, path: Path | str) -> errors.DataError:
    """Returns what to tell the user about a file that cannot be read."""
    if isinstance(error, FileNotFoundError):
        told = f"{path} vanished while it was being read; put it back and run again"
    elif isinstance(error, PermissionError):
        told = f"{path} may not be read; give yourself permission (chmod +r)"
    elif isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
        told = f"{path} cannot be read: {error.strerror or error}; check the disk"
    else:
        told = f"{path} is not a whole gzip file ({error}); fetch or write it again"
    return errors.DataError(told)

"""Records of files, one by one: what cannot be read is told, not dropped.

A file's name says what it holds. Damaged records come out with their problem, so that
a build can count them and a training run can refuse them; memory is bounded by the
longest line that is taken. Which fields of a record are text is not known here.
"""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Callable, Collection, Iterator
from typing import Any

from lmx.core.errors import DataError
from lmx.data import array_records, pages, places, streams, warc
from lmx.data.places import FileEntry
from lmx.data.record import Record, json_record, not_text, text_record

SMALLEST_PIECE, LARGEST_PIECE, PIECES = 1_000, 16_000, 64


Reader = Callable[[FileEntry, Collection[str]], Iterator[Record]]
"""Takes the fields that are wanted; records may have more, and all if it is empty."""


def read(
    entries: list[FileEntry], *, whole_files: bool, fields: Collection[str] = ()
) -> Iterator[Record]:
    """Yields the records of some files; text files are one each, or cut where single.

    Of records that are stored by columns only `fields` are read, if they are there.
    Raises a `DataError` where a file is not what it was when it was listed, or is so
    damaged that nothing tells its records apart.
    """
    for entry in entries:
        places.check_same(entry)
        reader = reader_of(entry.name)
        if reader is not None:
            yield from reader(entry, fields)
        elif whole_files:
            yield text_file(entry)
        else:
            yield from _pieces(entry)
        places.check_same(entry)  # what was read is what was listed


def reader_of(name: str) -> Reader | None:
    """Returns what reads the records of a file of this name; None of a text."""
    name = streams.unpacked_name(name)
    return next((read for ends, read in READERS.items() if name.endswith(ends)), None)


def text_file(entry: FileEntry) -> Record:
    """Returns the record whose `text` is the file, or what is wrong with it."""
    try:
        content = b"".join(streams.chunks(entry, most=streams.LONGEST_LINE))
    except streams.TooLong:
        return Record(entry.name, {}, f"more than {streams.LONGEST_LINE >> 20} MB")
    return text_record(entry.name, content)


def split_text(texts: Iterator[str]) -> Iterator[str]:
    """Cuts one text, given in parts, into documents at blank lines.

    So some can be held out. A piece ends at the first blank line after its size, which
    is 1/64 of the text but 1,000 to 16,000 characters; where none comes within four
    sizes, at the last line end before that, or there. The pieces join to the text, and
    depend on nothing but it.
    """
    held, ended = "", False

    def fill(least: int) -> None:
        nonlocal held, ended
        parts = [held]
        length = len(held)
        while length < least and not ended:
            part = next(texts, None)
            ended = part is None
            parts.append(part or "")
            length += len(parts[-1])
        held = "".join(parts)

    fill(PIECES * LARGEST_PIECE)
    size = min(max(len(held) // PIECES, SMALLEST_PIECE), LARGEST_PIECE)
    limit, start = 4 * size, 0
    while True:
        if len(held) - start < limit + 2 and not ended:
            held, start = held[start:], 0
            fill(1 << 20)
        if len(held) - start <= size:
            break
        cut = _cut(held, start, size=size, limit=start + limit)
        yield held[start:cut]
        start = cut
    if start < len(held):
        yield held[start:]


def _cut(text: str, start: int, *, size: int, limit: int) -> int:
    """Returns where a piece that begins at `start` ends."""
    ends = [
        at + len(mark)
        for mark in ("\n\n", "\n\r\n")
        if (at := text.find(mark, start + size, limit)) >= 0
    ]
    cut = min(ends, default=-1)
    if cut < 0:
        cut = text.rfind("\n", start, limit) + 1
    return cut if cut > start else min(limit, len(text))


def _pieces(entry: FileEntry) -> Iterator[Record]:
    """Yields the pieces of one text, of any length; a long one is read in parts."""
    whole = text_file(entry)
    if whole.problem is None:
        texts = iter([whole.fields["text"]])
    elif whole.problem.startswith("more than"):
        texts = _decoded(entry)
    else:
        yield whole
        return
    for number, text in enumerate(split_text(texts)):
        yield Record(f"{entry.name}#{number}", {"text": text})


def _decoded(entry: FileEntry) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    done = 0
    for chunk in itertools.chain(streams.chunks(entry), [b""]):
        try:
            if problem := not_text(chunk):
                raise DataError(f"{entry.path} is not text ({problem})")
            yield decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{entry.path} is not UTF-8 text after byte {done:,} ({error.reason}); "
                "convert it (iconv -f latin1 -t utf-8)"
            ) from error
        done += len(chunk)


def _json_lines(entry: FileEntry, fields: Collection[str]) -> Iterator[Record]:
    del fields
    for number, line in enumerate(streams.lines(entry), start=1):
        name = f"{entry.name}#{number}"
        if line is None:
            long = streams.LONGEST_LINE >> 20
            yield Record(name, {}, f"a line of more than {long} MB")
        elif line.strip():
            yield json_record(name, line)


def _parquet(entry: FileEntry, fields: Collection[str]) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        with (
            places.open_file(entry) as stream,
            pyarrow.parquet.ParquetFile(stream) as file,
        ):
            number = done = 0
            known = set(file.schema_arrow.names)
            columns = sorted(fields) if fields and known.issuperset(fields) else None
            for batch in file.iter_batches(batch_size=256, columns=columns):
                rows = batch.to_pylist()
                done += max(batch.nbytes, sum(map(_letters, rows)))
                streams.check_expansion(entry, done)
                for row in rows:
                    yield Record(f"{entry.name}#{number}", row)
                    number += 1
    except (FileNotFoundError, PermissionError) as error:
        raise places.unreadable(error, entry.path) from error
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"{entry.path} is not a whole parquet file ({error}); fetch or write it "
            "again"
        ) from error


def _letters(row: dict[str, Any]) -> int:
    """Returns how long the texts of a row are: a dictionary holds each but once."""
    return sum(len(value) for value in row.values() if isinstance(value, str | bytes))


READERS: dict[tuple[str, ...], Reader] = {
    (".jsonl", ".ndjson"): _json_lines,
    (".parquet", ".pq"): _parquet,
    (".array_record", ".arrayrecord"): array_records.read,
    (".html", ".htm"): pages.read,
    (".warc", ".wet"): warc.read,
}

"""Records of files, one by one: what cannot be read is told, not dropped.

A source is cut into shards, each a few files that one process reads. Damaged records
come out with their problem, so that a build can count them; memory is bounded by the
longest line that is taken.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lmx.core.errors import DataError, did_you_mean
from lmx.data import files
from lmx.data.files import FileEntry
from lmx.data.sources import Source, open_source
from lmx.inputs.example import Format

SHARD_BYTES = 32 << 20
LONGEST_LINE = 64 << 20
READ_BYTES = 1 << 20
# No text is packed so well; what expands further is made to fill a disk or a memory.
EXPANSION, EXPANSION_BYTES = 200, 1 << 30
COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
JSON_LINES = (".jsonl", ".ndjson")
FIELD = re.compile(r"\{(\w+)\}")


class Record(NamedTuple):
    """One record of a source, or why there is none."""

    name: str
    fields: dict[str, Any]
    problem: str | None = None


def cut(entries: list[FileEntry], size: int) -> list[list[FileEntry]]:
    """Returns the files as shards of about `size` bytes, in their order."""
    shards: list[list[FileEntry]] = []
    room = 0
    for entry in entries:
        if not shards or entry.size > room:
            shards.append([])
            room = size
        shards[-1].append(entry)
        room -= entry.size
    return shards


def read(entries: list[FileEntry], *, whole_files: bool) -> Iterator[Record]:
    """Yields the records of some files; text files are one each, or cut where single.

    Raises a `DataError` where a file is not what it was when it was listed.
    """
    for entry in entries:
        _check_same(entry)
        kind = _kind(entry.path)
        if kind == "parquet":
            yield from _parquet(entry)
        elif kind == "lines":
            yield from _json_lines(entry)
        elif whole_files:
            yield _text_file(entry)
        else:
            whole = _text_file(entry)
            pieces = files.split_text(whole.fields.get("text", ""))
            yield from [whole] if whole.problem else []
            for number, text in enumerate(pieces):
                yield Record(f"{entry.name}#{number}", {"text": text})
        _check_same(entry)  # what was read is what was listed


def open_named(name: str, template: str) -> tuple[Source, str]:
    """Returns the data set of a name, such as TFDS knows, and the field it reads.

    Raises a `DataError` where there is none, or the template asks for more.
    """
    fields = set(FIELD.findall(template))
    if len(fields) != 1:
        raise DataError(
            f"{name} is a data set of which one field can be read, and {template!r} "
            f"names {len(fields)}; name one"
        )
    (field,) = fields
    root = Path(os.environ.get("LMX_CACHE") or "~/.cache/lmx").expanduser()
    return open_source(name, text_field=field, cache_dir=root.absolute()), field


def read_named(name: str, template: str, left_out: Counter[str]) -> Iterator[Record]:
    """Yields the records of a data set that has a name; counts what it leaves out."""
    source, field = open_named(name, template)
    for _, document, text in source.read(left_out):
        yield Record(document, {field: text})


def render(template: str, fields: dict[str, Any]) -> str:
    """Returns the template with its fields in place.

    Raises a KeyError for a field that is not there, a TypeError for one of no text.
    """

    def put(match: re.Match[str]) -> str:
        return _written(fields[match[1]], match[1])

    return FIELD.sub(put, template)


def example(
    form: Format,
    templates: Mapping[str, str],
    fields: dict[str, Any],
    *,
    tidy: Callable[[str], str],
) -> tuple[dict[str, Any], str]:
    """Returns the fields of an example, and the text that filters read of it.

    A field is its template filled in with the record's texts, each of them tidied; one
    without a template is the record's of its name. Messages stay a list where nothing
    stands beside them. Raises as `render` does.
    """
    found: dict[str, Any] = {}
    views = []
    for name in form.fields:
        if name in form.optional and name not in {*templates, *fields}:
            continue
        template = templates.get(name, f"{{{name}}}")
        used = {key: _tidied(fields[key], tidy) for key in FIELD.findall(template)}
        text = render(template, used)
        value = used.get(template[1:-1])
        kept = name in form.messages and isinstance(value, list)
        found[name] = value if kept else text
        if used:  # what is the same in all records is not the record's
            views.append(text)
    return found, "\n".join(views)


def _tidied(value: Any, tidy: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return tidy(value)
    if isinstance(value, list):
        return [_tidied(item, tidy) for item in value]
    if isinstance(value, dict):
        return {key: _tidied(item, tidy) for key, item in value.items()}
    return value


def check_template(template: str, name: str) -> None:
    """Raises a `DataError` for a template that takes nothing of a record."""
    if not FIELD.search(template):
        raise DataError(
            f"{name}={template!r} names no field; write one in braces, as in '{{text}}'"
        )


def _written(value: Any, name: str) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return str(value)
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        return "\n".join(value)
    if isinstance(value, list) and all(_is_message(v) for v in value):
        return "\n".join(f"{v['role']}: {v['content']}" for v in value)
    raise TypeError(f"field {name!r} holds {type(value).__name__}, not text")


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(key), str) for key in ("role", "content")
    )


def _kind(path: Path) -> str:
    name = path.name.lower()
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    if name.endswith(files.PARQUET):
        return "parquet"
    return "lines" if name.endswith(JSON_LINES) else "text"


def _check_same(entry: FileEntry) -> None:
    try:
        info = entry.path.stat()
    except OSError as error:
        raise DataError(
            f"{entry.path} was there when the build began and cannot be read now "
            f"({error.strerror}); put it back and build again"
        ) from error
    if (info.st_size, info.st_mtime_ns) != (entry.size, entry.modified_ns):
        raise DataError(
            f"{entry.path} changed while the build ran ({entry.size:,} bytes, now "
            f"{info.st_size:,}); build again when nothing writes to it"
        )


def _text_file(entry: FileEntry) -> Record:
    try:
        content = b"".join(_chunks(entry, most=LONGEST_LINE))
    except _TooLong:
        return Record(entry.name, {}, f"more than {LONGEST_LINE >> 20} MB")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return Record(entry.name, {}, "UTF-16")
    if b"\0" in content:
        return Record(entry.name, {}, "binary")
    try:
        return Record(entry.name, {"text": content.decode("utf-8-sig")})
    except UnicodeDecodeError as error:
        return Record(entry.name, {}, f"not UTF-8 at byte {error.start}")


def _json_lines(entry: FileEntry) -> Iterator[Record]:
    for number, line in enumerate(_lines(entry), start=1):
        name = f"{entry.name}#{number}"
        if line is None:
            yield Record(name, {}, f"a line of more than {LONGEST_LINE >> 20} MB")
        elif line.strip():
            yield _json_record(name, line)


def _json_record(name: str, line: bytes) -> Record:
    try:
        fields = json.loads(line)
    except UnicodeDecodeError as error:
        return Record(name, {}, f"not UTF-8 at byte {error.start}")
    except (ValueError, RecursionError) as error:
        return Record(name, {}, f"not JSON ({str(error)[:80]})")
    if not isinstance(fields, dict):
        return Record(name, {}, f"{type(fields).__name__}, not an object")
    return Record(name, fields)


def _parquet(entry: FileEntry) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(entry.path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=256):
                for fields in batch.to_pylist():
                    yield Record(f"{entry.name}#{number}", fields)
                    number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"{entry.path} is not a whole parquet file ({error}); fetch or write it "
            "again"
        ) from error


def _lines(entry: FileEntry) -> Iterator[bytes | None]:
    """Yields lines; None for one that is longer than is taken."""
    held: list[bytes] = []
    size, skipping = 0, False
    for chunk in _chunks(entry):
        *whole, rest = chunk.split(b"\n")
        for part in whole:
            yield (
                None
                if skipping or size + len(part) > LONGEST_LINE
                else b"".join([*held, part])
            )
            held, size, skipping = [], 0, False
        if rest:
            size += len(rest)
            skipping = skipping or size > LONGEST_LINE
            held = [] if skipping else [*held, rest]
    if held or skipping:
        yield None if skipping else b"".join(held)


class _TooLong(Exception):
    """A file has more bytes than are taken."""


def _chunks(entry: FileEntry, most: int | None = None) -> Iterator[bytes]:
    """Yields the bytes of a file, unpacked; raises a `DataError` for a bomb."""
    import pyarrow

    packed = COMPRESSED.get(entry.path.suffix.lower())
    done = 0
    try:
        with (
            open(entry.path, "rb") as file,
            pyarrow.input_stream(file, compression=packed) as stream,
        ):
            while chunk := stream.read(READ_BYTES):
                done += len(chunk)
                if packed and done > max(EXPANSION_BYTES, EXPANSION * entry.size):
                    raise DataError(
                        f"{entry.path} unpacks to more than {EXPANSION} times its "
                        f"{entry.size:,} bytes; it is taken for a bomb: unpack it "
                        "yourself if it is none"
                    )
                if most is not None and done > most:
                    raise _TooLong
                yield chunk
    except (pyarrow.ArrowException, OSError, EOFError) as error:
        kind = f"whole {packed} file" if packed else "readable file"
        raise DataError(
            f"{entry.path} is not a {kind} ({error}); fetch or write it again"
        ) from error


def missing_field(error: KeyError, fields: dict[str, Any]) -> str:
    """Returns what to say of a record without the field that a template names."""
    return f"no field {error.args[0]!r}{did_you_mean(str(error.args[0]), fields)}"

"""From a source's records to documents: shards of its files, templates filled in.

A source is cut into shards, each a few files that one process reads. How files are read
is in `lmx.data.readers`.
"""

from __future__ import annotations

import base64
import contextlib
import fnmatch
import functools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lmx.core.errors import DataError, StorageError, UserError, did_you_mean
from lmx.curate.config import SourceConfig
from lmx.data import places
from lmx.data.places import LINKED_FOLDER, FileEntry, Listing
from lmx.data.record import Record
from lmx.data.sources import Source, open_source
from lmx.inputs.example import Format
from lmx.inputs.examples import FORMATS

SHARD_BYTES = 32 << 20
FIELD = re.compile(r"\{(\w+)\}")
OPTIONS = {  # of training, and what serves in their place here
    "data.path": "the source's path",
    "data.text_field": "the source's text",
    "data.cache_dir (or $LMX_CACHE)": "$LMX_CACHE",
}


def list_source(name: str, source: SourceConfig) -> Listing | None:
    """Returns the files of a source, or None where it names no place.

    Raises a `UserError` for a pattern of a single file, a `DataError` for one that fits
    no file.
    """
    found = places.find(source.path)
    if found is None:
        if places.is_url(source.path):
            raise DataError(
                f"sources.{name}.path={source.path!r}: nothing is there; mend it"
            )
        return None
    pattern = f"sources.{name}.files={source.files!r}"
    if found.single:
        if source.files != SourceConfig.files:
            raise UserError(
                f"{pattern} is for folders, and {source.path} is a file; leave it out"
            )
        return found
    fits = functools.partial(fnmatch.fnmatchcase, pat=source.files)
    entries = [entry for entry in found.entries if fits(entry.name)]
    if not entries:
        raise DataError(
            f"{pattern} fits no file of {source.path}; mend the pattern (it sees names "
            "such as 'folder/file.txt')"
        )
    over = [one for one in found.passed_over if fits(one[0]) or one[1] == LINKED_FOLDER]
    return Listing(entries, False, over)


def fields_of(source: SourceConfig, *, address: bool) -> set[str]:
    """Returns the fields of records that a source's templates name."""
    form = FORMATS[source.format]
    templates = [source.text]
    if form is not None:
        templates = [source.fields.get(name, f"{{{name}}}") for name in form.fields]
    templates += [source.url] if address else []
    fields = {field for each in templates for field in FIELD.findall(each)}
    return fields | set(source.columns.values())


def carried(source: SourceConfig, fields: dict[str, Any]) -> list[bytes]:
    """Returns what a record carries along, for each of the source's columns.

    Bytes, the `bytes` of a picture or sound as Hugging Face data sets hold it, or the
    base64 of some. Raises a KeyError for a field that is not there, a TypeError for one
    of no bytes.
    """
    return [_content(fields[field], field) for field in source.columns.values()]


def _content(value: Any, name: str) -> bytes:
    if isinstance(value, dict):
        value = value.get("bytes")
    if isinstance(value, str):
        try:
            value = base64.b64decode(value, validate=True)
        except ValueError as error:
            raise TypeError(f"field {name!r} is not base64 ({error})") from error
    if not isinstance(value, bytes) or not value:
        kind = "nothing" if value in (None, b"") else type(value).__name__
        raise TypeError(f"field {name!r} holds {kind}, not bytes")
    return value


def address(source: SourceConfig, fields: dict[str, Any]) -> str:
    """Returns the address of a document; none where records need not have one.

    Raises as `render` does.
    """
    if source.url == SourceConfig.url and "url" not in fields:
        return ""
    return render(source.url, fields).strip()


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
    with _of_a_source():
        return open_source(name, text_field=field, cache_dir=root.absolute()), field


def read_named(name: str, template: str, left_out: Counter[str]) -> Iterator[Record]:
    """Yields the records of a data set that has a name; counts what it leaves out."""
    source, field = open_named(name, template)
    with _of_a_source():
        for _, document, text in source.read(left_out):
            yield Record(document, {field: text})


@contextlib.contextmanager
def _of_a_source() -> Iterator[None]:
    """Words errors that name options of training as those of a source."""
    try:
        yield
    except (DataError, StorageError) as error:
        told = str(error)
        for option, ours in OPTIONS.items():
            told = told.replace(option, ours)
        kind = DataError if isinstance(error, DataError) else StorageError
        raise kind(told) from error


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


def missing_field(error: KeyError, fields: dict[str, Any]) -> str:
    """Returns what to say of a record without the field that a template names."""
    return f"no field {error.args[0]!r}{did_you_mean(str(error.args[0]), fields)}"

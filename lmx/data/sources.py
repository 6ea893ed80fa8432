"""Where text comes from: one path or name → documents, split, without duplicates.

A document is a file of a folder, a record of a JSON-lines or parquet file, an example
of a TFDS data set, or a piece of a single text file. This module decides what
`data.path` means and who is held out; how a file is read is in `files`, TFDS in
`tfds_source`.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lmx.core import errors
from lmx.data import files, places, stdlib_files
from lmx.data.places import FileEntry, Listing
from lmx.data.store import atomic_directory

BUILT_IN = "python_stdlib"
TFDS_NAME = re.compile(r"[a-z][a-z0-9_]*(/[\w.-]+)?(:[\w.*]+)?")
SURROGATE = re.compile("[\ud800-\udfff]")

Read = Callable[[Counter[str]], Iterator[tuple[str | None, str, str]]]


class Document(NamedTuple):
    """One text, whole, and the split it belongs to."""

    name: str
    text: str
    digest: bytes
    """16 bytes of the sha256 of the text with line ends normalised."""
    held_out: bool


@dataclasses.dataclass(frozen=True)
class Source:
    """Text that can be read, and what identifies it without reading it."""

    name: str
    identity: Any
    """JSON value that differs when the content does: names, sizes, times."""
    size: int
    """Bytes on disk, about."""
    read: Read
    """Yields (split or None, name, text); counts what it leaves out."""


def open_source(path: str, *, text_field: str, cache_dir: Path) -> Source:
    """Returns the source that `path` names, without reading its text.

    Raises a `DataError` where there is none, with the nearest name.
    """
    if places.is_url(path):
        if (found := places.find(path)) is None:
            raise errors.DataError(f"there is nothing at {path!r}; mend data.path")
        return _files(path, found, text_field=text_field)
    try:
        place = Path(path).expanduser()
        exists = place.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise errors.DataError(
            f"{path[:80]!r} is no usable path ({error}); set data.path to another"
        ) from error
    if exists:
        found = places.find(str(place))
        assert found is not None
        if (place / "dataset_info.json").exists():
            from lmx.data import tfds_source

            builder = tfds_source.open_directory(place)
            return _tfds(builder, text_field=text_field, entries=found.entries)
        return _files(
            str(place.resolve()), found, text_field=text_field, name=str(place)
        )
    if path == BUILT_IN:
        return _stdlib(cache_dir, text_field=text_field)
    if TFDS_NAME.fullmatch(path) and not files.holds_records(path):
        near = _neighbours(place)
        if near:
            raise errors.DataError(f"there is no {path!r} here{near}")
        from lmx.data import tfds_source

        builder = tfds_source.open_builder(path)
        return _tfds(builder, text_field=text_field, entries=[])
    raise errors.DataError(
        f"there is no file or folder {path!r}{_neighbours(place)}; set data.path to a "
        f"folder, a .txt, .jsonl or .parquet file, or a TFDS name such as {BUILT_IN!r}"
    )


def read_documents(
    source: Source,
    *,
    validation_fraction: float,
    max_documents: int | None,
    tally: Counter[str],
) -> Iterator[Document]:
    """Yields every document of `source` once, validation first where it has its own.

    Exact duplicates (but for line ends) are left out, across splits too; the copy in
    the validation split stays. Without a split of its own, a document is held out
    by the hash of its text, whatever its place. Lone surrogates become U+FFFD. Counts
    in `tally`: documents, duplicates, empty, skipped. Raises a `DataError` for
    unreadable data, a `UserError` for a fraction outside (0, 1).
    """
    if not 0 < validation_fraction < 1:
        raise errors.UserError(
            f"data.validation_fraction is {validation_fraction}; it must be above 0 "
            "and below 1, such as 0.05"
        )
    if max_documents is not None and max_documents < 2:
        raise errors.UserError(
            f"data.max_documents is {max_documents}; it must be 2 or more, one of them "
            "to be held out"
        )
    seen: set[bytes] = set()
    taken: Counter[str] = Counter()
    limits = _limits(max_documents, validation_fraction)
    for split, name, text in source.read(tally):
        if taken[str(split)] >= limits.get(str(split), taken[str(split)] + 1):
            if split == "validation":
                continue
            return  # validation comes first: nothing that follows is taken
        text = SURROGATE.sub("\ufffd", text)
        normal = text.replace("\r\n", "\n").replace("\r", "\n")
        digest = hashlib.sha256(normal.encode()).digest()[:16]
        if not text.strip():
            tally["empty"] += 1
            continue
        if digest in seen:
            tally["duplicates"] += 1
            continue
        seen.add(digest)
        taken[str(split)] += 1
        tally["documents"] += 1
        held_out = split == "validation"
        if split is None:
            share = int.from_bytes(digest[:8], "big") / 2**64
            held_out = share < validation_fraction
        yield Document(name, text, digest, held_out)


def _limits(max_documents: int | None, fraction: float) -> dict[str, int]:
    """Returns how many documents of each split to take, by the split's name."""
    if max_documents is None:
        return {}
    held_out = max(1, round(max_documents * fraction))
    return {
        "None": max_documents,
        "validation": held_out,
        "train": max_documents - held_out,
    }


def _files(
    place: str, found: Listing, *, text_field: str, name: str | None = None
) -> Source:
    entries = found.entries

    def read(tally: Counter[str]) -> Iterator[tuple[str | None, str, str]]:
        if found.single:
            pairs = files.read_single(entries[0], text_field=text_field)
        else:
            tally["passed over"] += len(found.passed_over)
            pairs = files.read_folder(entries, text_field=text_field, tally=tally)
        for document, text in pairs:
            yield None, document, text

    return Source(
        name=name or place,
        identity=[place, _identity(entries)],
        size=sum(entry.size for entry in entries),
        read=read,
    )


def _stdlib(cache_dir: Path, *, text_field: str) -> Source:
    """The built-in corpus; it is written below `cache_dir` when it is first read."""
    entries = stdlib_files.list_stdlib()
    identity = [BUILT_IN, _identity(entries)]
    key = hashlib.sha256(repr(identity).encode()).hexdigest()[:16]
    data_dir = cache_dir / "tfds" / key

    def read(tally: Counter[str]) -> Iterator[tuple[str | None, str, str]]:
        from lmx.data import tfds_source

        try:
            yield from load(tally)
        except tfds_source.DamagedError:  # it can be made again, so it is
            shutil.rmtree(data_dir, ignore_errors=True)
            yield from load(tally)

    def load(tally: Counter[str]) -> list[tuple[str | None, str, str]]:
        from lmx.data import tfds_source

        if not data_dir.exists():
            with atomic_directory(data_dir) as partial:
                tfds_source.build_stdlib(partial)
        builder = tfds_source.open_stdlib(data_dir)
        documents = list(_tfds(builder, text_field=text_field, entries=[]).read(tally))
        tally.update(tfds_source.built_in_tally(builder))
        return documents

    size = sum(entry.size for entry in entries)
    return Source(name=BUILT_IN, identity=identity, size=size, read=read)


def _tfds(builder: Any, *, text_field: str, entries: list[FileEntry]) -> Source:
    from lmx.data import tfds_source

    names = tfds_source.splits(builder)

    def read(tally: Counter[str]) -> Iterator[tuple[str | None, str, str]]:
        del tally
        for ours in ("validation", "train"):  # a duplicate stays where it is held out
            if ours in names:
                split = ours if "validation" in names else None
                documents = tfds_source.read_split(
                    builder, names[ours], text_field=text_field
                )
                for name, text in documents:
                    yield split, name, text

    info = builder.info
    counts = {name: info.splits[name].num_examples for name in names.values()}
    return Source(
        name=info.full_name,
        identity=[info.full_name, str(builder.data_dir), counts, _identity(entries)],
        size=int(info.dataset_size or 0),
        read=read,
    )


def _identity(entries: list[FileEntry]) -> list[list[Any]]:
    return [[entry.name, entry.size, entry.stamp] for entry in entries]


def _neighbours(place: Path) -> str:
    """Returns "; did you mean 'x'?" for a similar name in the same folder, or ""."""
    try:
        names = [entry.name for entry in place.parent.iterdir()]
    except OSError:
        return ""
    near = difflib.get_close_matches(place.name, names, n=1, cutoff=0.75)
    return f"; did you mean {str(place.with_name(near[0]))!r}?" if near else ""

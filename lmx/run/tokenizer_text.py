"""The text of `lmx tokenizer`: what tokenizers learn from, and what they are judged on.

The split is that of training: a document is held out by the hash of its text, and a
copy of it is nowhere else. So a tokenizer never sees what a model of the same text and
fraction is judged on.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from lmx.core.errors import DataError, StorageError, UserError, did_you_mean
from lmx.core.schema import DataConfig
from lmx.data import files, places
from lmx.data.pipeline import TRAINING_BYTES, cache_directory
from lmx.data.sources import Document, Source, open_source, read_documents
from lmx.data.spool import Spool

EVERYTHING = "all"


@dataclasses.dataclass(frozen=True)
class TextOptions:
    """Which text, and how it is split.

    Attributes:
      path: a folder, a file, or a TFDS name, as `data.path`.
      text_field: field of records that holds the text.
      fraction: share held out.
      by: field of records whose values are compared, if any.
      values: those to take; empty takes all.
      lines: hold out single lines of documents, not whole ones.
      own_split: keep to the validation split of a source that has one.
    """

    path: str
    text_field: str
    fraction: float
    by: str | None = None
    values: tuple[str, ...] = ()
    lines: bool = False
    own_split: bool = False


@dataclasses.dataclass(frozen=True)
class Texts:
    """Text to train on, on disk, and text to judge by, by the value of a field."""

    train: Spool
    held_out: dict[str, list[str]]

    def training(self) -> Iterator[str]:
        """Yields what a tokenizer is trained on; every n-th document of huge text."""
        return self.train.texts(every=1 + self.train.size // TRAINING_BYTES)

    def write_corpus(self, path: Path) -> None:
        """Writes all of it as JSON lines: read with the same fraction, it splits so."""
        with open(path, "w", encoding="utf8") as file:
            for text in self.train.texts():
                file.write(json.dumps({"text": text}) + "\n")
            for texts in self.held_out.values():
                for text in texts:
                    file.write(json.dumps({"text": text}) + "\n")


def read_texts(options: TextOptions, folder: Path) -> Texts:
    """Reads the text once; its training part goes to a file in `folder`.

    Raises:
      UserError: a value of `by` is not in the text, or the fraction is not one.
      DataError: the text cannot be read, or nothing of it was held out, or all.
      StorageError: `folder` cannot take it.
    """
    tally: Counter[str] = Counter()
    held_out: dict[str, list[str]] = {}
    spool = Spool(folder / "train.txt")
    nearest: tuple[bytes, int, str, str] | None = None
    try:
        with spool:
            for value, document in _documents(options, tally):
                texts = held_out.setdefault(value, [])
                if document.held_out:
                    texts.append(document.text)
                    continue
                one = (document.digest, len(spool), value, document.text)
                nearest = one if nearest is None else min(nearest, one)
                spool.append(document.text)
    except OSError as error:  # those of the source are DataErrors already
        raise StorageError(
            f"cannot copy the text to {folder}: {error.strerror or error}; free some "
            "space, or set TMPDIR to another folder"
        ) from error
    if not tally["documents"]:
        raise DataError(f"{options.path} has no text; give a source with some")
    if nearest and len(spool) > 1 and not any(held_out.values()):
        # Few documents: the hash held none out, so the next in line is, as in training.
        _, index, value, text = nearest
        spool.drop(index)
        held_out[value].append(text)
    judged = {value: texts for value, texts in sorted(held_out.items()) if texts}
    if not judged or not len(spool):
        raise DataError(
            f"{options.path} has {tally['documents']} documents; with "
            f"--held_out={options.fraction} "
            f"{'all' if judged else 'none'} of them are held out: give more text or "
            "another share"
        )
    return Texts(spool, judged)


def _documents(
    options: TextOptions, tally: Counter[str]
) -> Iterator[tuple[str, Document]]:
    """Yields each document with the value of its group."""
    cache_dir = cache_directory(DataConfig())
    source = open_source(
        options.path, text_field=options.text_field, cache_dir=cache_dir
    )
    values: dict[str, str] = {}
    if options.by is not None:
        values = field_values(options.path, options.by)
        _check_values(options, values.values())

    def group(name: str) -> str:
        return EVERYTHING if options.by is None else values[name]

    if not options.own_split:
        source = _chosen(source, lambda name: _wanted(options, group(name)))
    if options.lines:
        source = _cut_lines(source)
    documents = read_documents(
        source,
        validation_fraction=options.fraction,
        max_documents=None,
        tally=tally,
    )
    for document in documents:
        name = document.name.rpartition(":")[0] if options.lines else document.name
        yield group(name), document


def field_values(path: str, field: str) -> dict[str, str]:
    """Returns the value of a field by the name of the document that has it."""
    if (found := places.find(path)) is None:
        raise DataError(f"--by={field} needs files of records; there is no {path}")
    values: dict[str, str] = {}
    for entry in found.entries:
        for name, value in files.read_field(entry, field=field):
            if value is not None and not isinstance(value, str | int | float):
                raise DataError(
                    f"{name}: field {field!r} holds {type(value).__name__}, not text "
                    "or a number; give another field as --by"
                )
            values[name] = "null" if value is None else str(value)
    return values


def _check_values(options: TextOptions, found: Collection[str]) -> None:
    for value in options.values:
        if value not in found:
            near = did_you_mean(value, set(found)) if len(set(found)) < 50 else ""
            raise UserError(
                f"--values: no record of {options.path} has {options.by}={value!r}"
                f"{near or '; look at its records'}"
            )


def _wanted(options: TextOptions, value: str) -> bool:
    return not options.values or value in options.values


def _chosen(source: Source, wanted: Callable[[str], bool]) -> Source:
    """Returns the source with the documents whose names are wanted, in no split."""

    def read(tally: Counter[str]) -> Iterator[tuple[str | None, str, str]]:
        for _, name, text in source.read(tally):
            if wanted(name):
                yield None, name, text

    return dataclasses.replace(source, read=read)


def _cut_lines(source: Source) -> Source:
    """Returns the source whose documents are the lines of its documents."""

    def read(tally: Counter[str]) -> Iterator[tuple[str | None, str, str]]:
        for split, name, text in source.read(tally):
            for number, line in enumerate(text.splitlines(keepends=True)):
                if line.strip():
                    yield split, f"{name}:{number}", line

    return dataclasses.replace(source, read=read)


def check_share(share: float) -> float:
    """Returns the share to hold out; raises a `UserError` where it is none."""
    if not 0 < share < 1:
        raise UserError(f"--held_out={share} must be above 0 and below 1, such as 0.1")
    return share

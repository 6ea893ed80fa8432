"""One shard of a source: read, normalised, masked, filtered; written as Parquet.

A document is its source's template filled in. Whatever is left out is counted under
its reason, with a few examples, so that the data card can show it. Shards know nothing
of each other: any process may do any of them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from lmx.core.errors import DataError, UserError
from lmx.curate import records, rights
from lmx.curate.config import BuildConfig, SourceConfig
from lmx.curate.contamination import NGrams
from lmx.curate.filters import Judge, make_filter
from lmx.curate.keys import whole
from lmx.curate.masking import MASKS
from lmx.curate.masking import mask as masked
from lmx.curate.normalise import fingerprint, normalise
from lmx.curate.optouts import OptOuts
from lmx.curate.robots import Robots
from lmx.data import places, readers
from lmx.data.places import FileEntry
from lmx.data.record import Record
from lmx.inputs.examples import FORMATS

EXAMPLES = 3  # of each reason, in a shard
EXAMPLE_CHARACTERS = 300
# Of text in a row group, which one process encodes at a time: examples are slower.
ROWS_BYTES, EXAMPLE_ROWS_BYTES = 4 << 20, 1 << 19
# Bytes that are only copied cost less than text: so many count for one.
COPIED = 16
COLUMN = "column:"  # begins the names of what documents carry along
SCHEMA = pyarrow.schema(
    [
        ("name", pyarrow.string()),
        ("text", pyarrow.string()),
        ("fingerprint", pyarrow.binary(16)),
        ("fields", pyarrow.string()),  # JSON of an example; none of a text
    ]
)


@dataclasses.dataclass(frozen=True)
class Shard:
    """Some files of one source; `number` orders all shards, the preferred first."""

    number: int
    source: str
    entries: list[FileEntry]
    whole_files: bool
    name: str | None = None
    """Of a data set that is not files: TFDS, or the built-in corpus."""
    passed_over: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    """(name, what it is) of what is there and no file: links to folders, pipes."""

    @property
    def stem(self) -> str:
        """Returns what its files are called."""
        return f"{self.number:06d}"


class Tally:
    """What went in, what came out, and why the rest did not."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.dropped: dict[str, dict[str, Any]] = {}
        self.masked: Counter[str] = Counter()
        self.lengths: Counter[int] = Counter()
        self.removed: Counter[str] = Counter()

    def drop(self, reason: str, name: str, *, why: str, text: str) -> None:
        """Counts a document that is left out."""
        entry = self.dropped.setdefault(
            reason, {"documents": 0, "bytes": 0, "examples": []}
        )
        entry["documents"] += 1
        entry["bytes"] += len(text.encode("utf-8", "surrogatepass"))
        if len(entry["examples"]) < EXAMPLES:
            shown = text[:EXAMPLE_CHARACTERS]
            entry["examples"].append({"name": name, "why": why, "text": shown})

    def keep(self, text: str) -> None:
        """Counts a document that is kept."""
        size = len(text.encode())
        self.counts.update(documents_out=1, bytes_out=size)
        self.lengths[size.bit_length()] += 1

    def to_json(self) -> dict[str, Any]:
        """Returns what `card.tallies` adds up."""
        return {
            "counts": dict(self.counts),
            "dropped": self.dropped,
            "masked": dict(self.masked),
            "removed": dict(self.removed),
            "lengths": {str(k): v for k, v in self.lengths.items()},
        }


@dataclasses.dataclass(frozen=True)
class Cleaner:
    """What is done to each document of a source: made once in each process."""

    judges: dict[str, Judge]
    masks: dict[str, Callable[[str], tuple[str, int]]]
    leaks: dict[str, NGrams]
    removals: frozenset[str]
    optouts: OptOuts

    @classmethod
    def of(cls, config: BuildConfig, robots: Path | None = None) -> Cleaner:
        """Returns the cleaner of a config; reads its lists and evaluations.

        `robots` is a folder of what was gathered from archives.
        """
        return cls(
            judges={n: make_filter(n, kwargs) for n, kwargs in config.filters.items()},
            masks={name: MASKS[name] for name in config.masks},
            leaks=evaluation_ngrams(config),
            removals=rights.removals(config),
            optouts=OptOuts.of(config, Robots.of(config.robots, robots)),
        )

    def mask(self, text: str, tally: Tally) -> str:
        """Returns the text without personal data; what was masked is counted."""
        for kind, mask in self.masks.items():
            text, count = mask(text)
            tally.masked[kind] += count
        return text

    def apply(self, source: str, name: str, text: str, tally: Tally) -> str | None:
        """Returns the cleaned text, or None where it is left out and counted."""
        raw, text = text, normalise(text)
        if not text.strip():
            tally.drop("empty", name, why="no text", text=raw)
            return None
        digest = hashlib.sha256(raw.encode("utf-8", "surrogatepass")).hexdigest()
        if listed := self.removals & {f"{source}/{name}", digest}:
            tally.removed.update(listed)
            tally.drop("removed", name, why="on the removal list", text="")
            return None
        text = self.mask(text, tally)
        for reason, judge in self.judges.items():
            if (why := judge(text)) is not None:
                tally.drop(reason, name, why=why, text=text)
                return None
        for task, ngrams in self.leaks.items():
            if (found := ngrams.leak(text)) is not None:
                tally.drop(f"leak of {task}", name, why=f"holds {found!r}", text=text)
                return None
        return text


def clean(
    shard: Shard, source: SourceConfig, cleaner: Cleaner, *, folder: Path
) -> None:
    """Writes the documents of a shard and its tally below `folder`, once."""
    done = folder / f"{shard.stem}.json"
    if done.exists():
        return
    tally = Tally()
    path = folder / f"{shard.stem}.parquet"
    schema = SCHEMA
    for column in source.columns:
        schema = schema.append(pyarrow.field(COLUMN + column, pyarrow.binary()))
    with (
        whole(path) as unfinished,
        pyarrow.parquet.ParquetWriter(unfinished, schema, compression="zstd") as writer,
    ):
        size = ROWS_BYTES if FORMATS[source.format] is None else EXAMPLE_ROWS_BYTES
        for rows in _grouped(_kept(shard, source, cleaner, tally), most=size):
            columns = list(zip(*rows, strict=True))
            writer.write_table(pyarrow.table(columns, schema=schema))
    with whole(done) as unfinished:
        unfinished.write_text(json.dumps(tally.to_json()), "utf-8")


def _kept(
    shard: Shard, source: SourceConfig, cleaner: Cleaner, tally: Tally
) -> Iterator[tuple]:
    """Yields (name, text, fingerprint, fields of an example, *columns) of the kept."""
    for name, kind in shard.passed_over:
        tally.counts["records"] += 1
        tally.drop("no file", _spelled(name), why=kind, text="")
    if shard.name is None:
        found = readers.read(
            shard.entries,
            whole_files=shard.whole_files,
            fields=records.fields_of(source, address=cleaner.optouts.asks),
        )
    else:
        found = records.read_named(shard.name, source.text, tally.counts)
    for record in itertools.islice(found, source.max_documents):
        name = _spelled(record.name)
        tally.counts["records"] += 1
        problem, text, fields, refusal = record.problem, "", None, None
        if record.other is not None:
            tally.drop("no page", name, why=record.other, text="")
            continue
        try:
            if not problem:
                text, fields, problem = _content(source, record, cleaner, tally)
                columns = records.carried(source, record.fields)
                refusal = _refusal(source, record, cleaner, tally)
        except UserError:
            raise
        except KeyError as error:
            problem = records.missing_field(error, record.fields)
        except (TypeError, ValueError) as error:
            problem = str(error)
        if problem:
            tally.drop("damaged", name, why=problem, text="")
            continue
        size = len(text.encode("utf-8", "surrogatepass"))
        tally.counts.update(documents_in=1, bytes_in=size)
        if refusal is not None:  # the card shows nothing of it
            tally.drop(refusal[0], name, why=refusal[1], text="")
            continue
        kept = cleaner.apply(shard.source, name, text, tally)
        if kept is not None:
            tally.keep(kept)
            yield name, kept, fingerprint(kept), fields, *columns


def _spelled(name: str) -> str:
    """Returns a name that is text: those of files need not be."""
    return name.encode("utf-8", "backslashreplace").decode()


def _content(
    source: SourceConfig, record: Record, cleaner: Cleaner, tally: Tally
) -> tuple[str, str | None, str | None]:
    """Returns the text of a record, its fields as an example, and what is wrong."""
    form = FORMATS[source.format]
    if form is None:
        return records.render(source.text, record.fields), None, None
    fields, text = records.example(
        form,
        source.fields,
        record.fields,
        tidy=lambda text: cleaner.mask(normalise(text), tally),
    )
    return text, json.dumps(fields), form.problem(fields)


def _refusal(
    source: SourceConfig, record: Record, cleaner: Cleaner, tally: Tally
) -> tuple[str, str] | None:
    """Returns under which reason its owner refuses a document, and why, if so."""
    url = records.address(source, record.fields) if cleaner.optouts.asks else ""
    tally.counts["addresses"] += bool(url)
    try:
        return cleaner.optouts.refusal(url, record.signals)
    except UserError:
        raise
    except ValueError as error:
        raise ValueError(f"no address: {url[:80]!r} ({error})") from error


def _grouped(rows: Iterator[tuple], *, most: int) -> Iterator[list[tuple]]:
    """Groups rows by the size of their texts: memory holds one group."""
    group, size = [], 0
    for row in rows:
        group.append(row)
        size += len(row[1]) + sum(map(len, row[4:])) // COPIED
        if size >= most:
            yield group
            group, size = [], 0
    if group:
        yield group


def evaluation_ngrams(config: BuildConfig) -> dict[str, NGrams]:
    """Returns the n-grams of each evaluation, masked as documents are.

    Raises a `DataError` for one that is not there, too damaged, or without a passage.
    """
    found = {}
    for name, evaluation in config.evaluations.items():
        key = f"evaluations.{name}"
        records.check_template(evaluation.text, f"{key}.text")
        place = places.find(evaluation.path)
        if place is None:
            raise DataError(f"{key}.path={evaluation.path!r} does not exist; mend it")
        texts, problems, count = [], [], 0
        for record in readers.read(place.entries, whole_files=True):
            if record.other is not None:
                continue
            count += 1
            problem = record.problem
            try:
                if not problem:
                    text = normalise(records.render(evaluation.text, record.fields))
                    texts.append(masked(text, config.masks)[0])
            except KeyError as error:
                problem = records.missing_field(error, record.fields)
            except TypeError as error:
                problem = str(error)
            if problem:
                problems.append(f"{record.name}: {problem}")
        if len(problems) > config.bad_records * count:
            raise DataError(
                f"{key}: {len(problems):,} of {count:,} records are damaged, more than "
                f"bad_records={config.bad_records:.2%}, such as {problems[0]}"
            )
        found[name] = NGrams.of(texts, n=config.evaluation_words)
        if found[name].skipped == len(texts):
            raise DataError(
                f"{key}: of {len(texts):,} texts none is long enough to be looked for "
                "in documents; mend its template, or leave it out"
            )
    return found

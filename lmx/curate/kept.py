"""What a build keeps: the clean documents of all shards that are no duplicates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow.parquet

from lmx.curate.clean import Shard
from lmx.curate.keys import among, document_numbers, dropped
from lmx.curate.repeats import Cutter

ROWS = 1024  # read at a time


class Kept:
    """Documents in the order of the shards, read as often as needed."""

    def __init__(
        self,
        shards: Sequence[Shard],
        folder: Path,
        *,
        validation_fraction: float,
        repeated_words: int | None,
    ):
        """Takes a build's folder in which duplicates and repeats were found."""
        self._shards, self._folder = shards, folder
        self._fraction = validation_fraction
        self._gone = dropped(folder)
        self._cutter = repeated_words and Cutter(folder, words=repeated_words)

    def documents(
        self,
        source: str | None = None,
        *,
        held_out: bool | None = None,
        cuts: Counter[str] | None = None,
    ) -> Iterator[tuple[str, str]]:
        """Yields (name, text) of a source's documents, or of all; of a split, or both.

        A document is held out by its fingerprint, so copies would be together.
        """
        for name, text, _ in self.records(source, held_out=held_out, cuts=cuts):
            yield name, text

    def records(
        self,
        source: str | None = None,
        *,
        held_out: bool | None = None,
        cuts: Counter[str] | None = None,
    ) -> Iterator[tuple[str, str, str | None]]:
        """Yields (name, text, JSON of the fields of an example) of these documents.

        `cuts` counts the documents that lost a passage, the characters, and the
        documents of which no letter was left: these do not come.
        """
        cuts = Counter() if cuts is None else cuts
        for shard in self._shards:
            if source not in (None, shard.source):
                continue
            for number, name, text, fingerprint, fields in self._rows(shard):
                share = int.from_bytes(fingerprint[:8], "big") / 2**64
                if held_out not in (None, share < self._fraction):
                    continue
                if self._cutter and fields is None:  # examples are whole
                    text, gone = self._cutter.cut(number, text)
                    cuts.update(documents=bool(gone), characters=gone)
                    if gone and not any(letter.isalnum() for letter in text):
                        cuts["emptied"] += 1
                        continue
                yield name, text, fields

    def texts(self, *, held_out: bool | None = None, every: int = 1) -> Iterator[str]:
        """Yields the text of every so many-th document of a split, or of both."""
        for index, (_, text) in enumerate(self.documents(held_out=held_out)):
            if index % every == 0:
                yield text

    def _rows(self, shard: Shard) -> Iterator[tuple[int, str, str, bytes, str | None]]:
        """Yields (number, name, text, fingerprint, fields) of what is no copy."""
        path = self._folder / "clean" / f"{shard.stem}.parquet"
        start = 0
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=ROWS):
            numbers = document_numbers(shard.number, batch.num_rows, start=start)
            start += batch.num_rows
            stays = ~among(numbers, self._gone)
            columns = (batch.column(i).to_pylist() for i in range(4))
            rows = zip(*columns, strict=True)
            for number, row, stay in zip(numbers, rows, stays, strict=True):
                if stay:
                    yield int(number), *row

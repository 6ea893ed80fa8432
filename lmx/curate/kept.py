"""What a build keeps: the clean documents of all shards that are no duplicates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet

from lmx.curate.clean import Shard
from lmx.curate.keys import document_numbers
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
        pairs = [np.load(folder / f"{name}.npy")[:, 0] for name in ("exact", "near")]
        self._gone = np.unique(np.concatenate(pairs))
        self._cutter = repeated_words and Cutter(folder, words=repeated_words)

    def documents(
        self, source: str | None = None, *, held_out: bool | None = None
    ) -> Iterator[tuple[str, str]]:
        """Yields (name, text) of a source's documents, or of all; of a split, or both.

        A document is held out by its fingerprint, so copies would be together.
        """
        for name, text, _ in self.records(source, held_out=held_out):
            yield name, text

    def records(
        self, source: str | None = None, *, held_out: bool | None = None
    ) -> Iterator[tuple[str, str, str | None]]:
        """Yields (name, text, JSON of the fields of an example) of these documents."""
        for shard in self._shards:
            if source in (None, shard.source):
                for name, text, fingerprint, fields in self._rows(shard):
                    share = int.from_bytes(fingerprint[:8], "big") / 2**64
                    if held_out in (None, share < self._fraction):
                        yield name, text, fields

    def texts(self, *, held_out: bool | None = None, every: int = 1) -> Iterator[str]:
        """Yields the text of every so many-th document of a split, or of both."""
        for index, (_, text) in enumerate(self.documents(held_out=held_out)):
            if index % every == 0:
                yield text

    def _rows(self, shard: Shard) -> Iterator[tuple[str, str, bytes, str | None]]:
        path = self._folder / "clean" / f"{shard.stem}.parquet"
        start = 0
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=ROWS):
            numbers = document_numbers(shard.number, batch.num_rows, start=start)
            start += batch.num_rows
            stays = ~np.isin(numbers, self._gone)
            columns = (batch.column(i).to_pylist() for i in range(4))
            rows = zip(*columns, strict=True)
            for number, row, stay in zip(numbers, rows, stays, strict=True):
                if not stay:
                    continue
                name, text, fingerprint, fields = row
                if self._cutter and fields is None:  # examples are whole
                    text, _ = self._cutter.cut(int(number), text)
                if text:  # all of it may have been said before
                    yield name, text, fingerprint, fields

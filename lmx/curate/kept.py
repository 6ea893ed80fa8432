"""What a build keeps: the clean documents of all shards that are no duplicates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet

from lmx.curate.clean import Shard
from lmx.curate.duplicates import document_numbers

ROWS = 1024  # read at a time


class Kept:
    """Documents in the order of the shards, read as often as needed."""

    def __init__(
        self, shards: Sequence[Shard], folder: Path, *, validation_fraction: float
    ):
        """Takes a build's folder in which duplicates were found."""
        self._shards, self._folder = shards, folder
        self._fraction = validation_fraction
        pairs = [np.load(folder / f"{name}.npy")[:, 0] for name in ("exact", "near")]
        self._gone = np.unique(np.concatenate(pairs))

    def documents(
        self, source: str | None = None, *, held_out: bool | None = None
    ) -> Iterator[tuple[str, str]]:
        """Yields (name, text) of a source's documents, or of all; of a split, or both.

        A document is held out by its fingerprint, so copies would be together.
        """
        for shard in self._shards:
            if source in (None, shard.source):
                for name, text, fingerprint in self._rows(shard):
                    share = int.from_bytes(fingerprint[:8], "big") / 2**64
                    if held_out in (None, share < self._fraction):
                        yield name, text

    def texts(self, *, held_out: bool | None = None, every: int = 1) -> Iterator[str]:
        """Yields the text of every so many-th document of a split, or of both."""
        for index, (_, text) in enumerate(self.documents(held_out=held_out)):
            if index % every == 0:
                yield text

    def _rows(self, shard: Shard) -> Iterator[tuple[str, str, bytes]]:
        path = self._folder / "clean" / f"{shard.stem}.parquet"
        start = 0
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=ROWS):
            numbers = document_numbers(shard.number, batch.num_rows, start=start)
            start += batch.num_rows
            stays = ~np.isin(numbers, self._gone)
            columns = (batch.column(i).to_pylist() for i in range(3))
            for row, stay in zip(zip(*columns, strict=True), stays, strict=True):
                if stay:
                    yield row

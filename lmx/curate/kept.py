"""What a build keeps: the clean documents that are no duplicates, without repeats.

They are read piece by piece: a piece is what one process takes at a time, so what was
one large file is nevertheless the work of all.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.parquet

from lmx.curate.clean import COLUMN, Shard
from lmx.curate.keys import among, document_numbers, dropped


class Piece(NamedTuple):
    """A row group of a clean shard; `start` is the row that is its first."""

    source: str
    shard: int
    group: int
    start: int
    rows: int

    @property
    def stem(self) -> str:
        """Returns what its files are called."""
        return f"{self.shard:06d}-{self.group:06d}"

    @property
    def numbers(self) -> np.ndarray:
        """Returns the numbers of its documents, int64 [rows]."""
        return document_numbers(self.shard, self.rows, start=self.start)

    def read(self, folder: Path, columns: list[str] | None = None) -> pyarrow.Table:
        """Returns its clean documents, those that will not be kept too."""
        path = folder / "clean" / f"{self.shard:06d}.parquet"
        with pyarrow.parquet.ParquetFile(path) as file:
            return file.read_row_group(self.group, columns=columns)


class Row(NamedTuple):
    """A document that is kept."""

    name: str
    text: str
    held_out: bool
    fields: str | None
    """JSON of an example; None of a text."""
    columns: tuple[bytes, ...] = ()
    """What it carries along, in the order of the source's columns."""


def pieces(shards: Iterable[Shard], folder: Path) -> list[Piece]:
    """Returns the pieces of clean shards, in their order."""
    found = []
    for shard in shards:
        path = folder / "clean" / f"{shard.stem}.parquet"
        about = pyarrow.parquet.read_metadata(path)
        start = 0
        for group in range(about.num_row_groups):
            rows = about.row_group(group).num_rows
            found.append(Piece(shard.source, shard.number, group, start, rows))
            start += rows
    return found


class Kept:
    """The documents that a build keeps, once duplicates and repeats were found."""

    def __init__(self, folder: Path, *, validation_fraction: float):
        """Takes a build's folder and the share of documents that is held out."""
        self._folder, self._fraction = folder, validation_fraction
        self._gone = dropped(folder)

    def rows(self, piece: Piece) -> Iterator[Row]:
        """Yields the documents of a piece."""
        table = self._read(piece)
        columns = [name for name in table.column_names if name.startswith(COLUMN)]
        carried = zip(*(table[name].to_pylist() for name in columns), strict=True)
        plain = (table[name].to_pylist() for name in Row._fields[:-1])
        yield from map(Row, *plain, carried if columns else itertools.repeat(()))

    def texts(
        self,
        pieces: Sequence[Piece],
        *,
        held_out: bool | None = None,
        every: int = 1,
    ) -> Iterator[str]:
        """Yields the text of every so many-th document of a split, or of both."""
        seen = 0
        for piece in pieces:
            table = self._read(piece, ["text", "fingerprint"])
            if held_out is not None:
                mine = pyarrow.compute.equal(table["held_out"], held_out)
                table = table.filter(mine)
            taken = np.arange(-seen % every, table.num_rows, every)
            yield from table["text"].take(taken).to_pylist()
            seen += table.num_rows

    def _read(self, piece: Piece, columns: list[str] | None = None) -> pyarrow.Table:
        """Returns what is kept of a piece, with `held_out`.

        A document is held out by its fingerprint, so copies would be together.
        """
        table = piece.read(self._folder, columns)
        prints = np.frombuffer(b"".join(table["fingerprint"].to_pylist()), ">u8")
        share = prints[::2].astype(np.float64) / 2**64
        table = table.append_column("held_out", pyarrow.array(share < self._fraction))
        stays = ~among(piece.numbers, self._gone)
        cuts = self._folder / "cuts" / f"{piece.stem}.parquet"
        if cuts.exists():
            found = pyarrow.parquet.read_table(cuts)
            texts = table["text"].to_pylist()
            for row, text in zip(found["row"], found["text"], strict=True):
                texts[row.as_py()] = text.as_py()
            index = table.column_names.index("text")
            table = table.set_column(
                index, "text", pyarrow.array(texts, pyarrow.string())
            )
            stays[found["row"].filter(found["emptied"]).to_numpy()] = False
        return table.filter(pyarrow.array(stays))

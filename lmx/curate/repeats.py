"""Passages that an earlier document holds, cut from all that follow it.

What is cut, and how, is in `substrings`; here is who held a passage first, over all
documents, with memory for one range of hashes, and what is left of the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from lmx.curate import keys
from lmx.curate.kept import Piece
from lmx.curate.substrings import cut, window_hashes

HELD = np.dtype([("number", "<i8"), ("key", "<u8")])
CUTS = pyarrow.schema(
    [
        ("row", pyarrow.int64()),
        ("text", pyarrow.string()),
        ("characters", pyarrow.int64()),
        ("emptied", pyarrow.bool_()),
    ]
)


def hash_windows(piece: Piece, *, words: int, folder: Path) -> None:
    """Writes windows/PIECE.npy: the hashes of its passages of `words` words.

    Documents that are dropped as duplicates have none.
    """
    done = folder / "windows" / f"{piece.stem}.npy"
    if done.exists():
        return
    stays = ~keys.among(piece.numbers, keys.dropped(folder))
    texts = piece.read(folder, ["text"])["text"].to_pylist()
    hashes = [
        window_hashes(text, n=words) if stay else np.zeros(0, np.uint64)
        for text, stay in zip(texts, stays, strict=True)
    ]
    of = np.repeat(piece.numbers, [len(some) for some in hashes])
    keys.write_run(done, np.concatenate(hashes), of)


def find_held(part: int, *, parts: int, folder: Path) -> None:
    """Writes held/PART.npy: HELD [n], passages of documents that are not the first.

    They are sorted by the documents.
    """
    done = folder / "held" / f"{part:04d}.npy"
    if done.exists():
        return
    key, number = keys.read_part(folder / "windows", part, parts=parts)
    later = keys.first_of_each(key, number) != number
    held = np.empty(int(later.sum()), HELD)
    held["key"], held["number"] = key[later], number[later]
    held.sort(order=["number", "key"])
    keys.save(done, held)


def cut_piece(piece: Piece, *, words: int, folder: Path) -> None:
    """Writes cuts/PIECE.parquet: each document that loses a passage, without it.

    `emptied` is one of which no letter is left. Memory is for what one piece repeats.
    """
    done = folder / "cuts" / f"{piece.stem}.parquet"
    if done.exists():
        return
    numbers = piece.numbers
    stays = ~keys.among(numbers, keys.dropped(folder))
    held = _held(numbers, folder)
    edges = np.searchsorted(held["number"], [*numbers, numbers[-1] + 1])
    rows = []
    for row, text in enumerate(piece.read(folder, ["text"])["text"].to_pylist()):
        if stays[row]:
            mine = held["key"][edges[row] : edges[row + 1]]
            left, gone = cut(text, mine, n=words)
            if gone:
                emptied = not any(map(str.isalnum, left))
                rows.append(
                    dict(zip(CUTS.names, (row, left, gone, emptied), strict=True))
                )
    table = pyarrow.Table.from_pylist(rows, schema=CUTS)
    with keys.whole(done) as unfinished:
        pyarrow.parquet.write_table(table, unfinished)


def count_cuts(pieces: Iterable[Piece], folder: Path) -> dict[str, Counter[str]]:
    """Returns what was cut of each source: documents, characters, documents emptied."""
    found: dict[str, Counter[str]] = {}
    for piece in pieces:
        path = folder / "cuts" / f"{piece.stem}.parquet"
        if path.exists():
            of = pyarrow.parquet.read_table(path, columns=["characters", "emptied"])
            found.setdefault(piece.source, Counter()).update(
                documents=of.num_rows,
                characters=int(of["characters"].to_numpy().sum()),
                emptied=int(of["emptied"].to_numpy().sum()),
            )
    return found


def _held(numbers: np.ndarray, folder: Path) -> np.ndarray:
    """Returns HELD [n] of some documents, sorted: their slices of all parts."""
    slices = [np.zeros(0, HELD)]
    for path in sorted((folder / "held").glob("*.npy")):
        part = np.load(path, mmap_mode="r")
        first, last = np.searchsorted(part["number"], [numbers[0], numbers[-1] + 1])
        slices.append(np.array(part[first:last]))
    found = np.concatenate(slices)
    found.sort(order=["number", "key"])
    return found

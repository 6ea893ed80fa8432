"""Passages that an earlier document holds, cut from all that follow it.

What is cut, and how, is in `substrings`; here is who held a passage first, over all
documents, with memory for one range of hashes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet

from lmx.curate import keys
from lmx.curate.substrings import cut, window_hashes

RUN_ROWS = 1024  # documents whose hashes are in memory at a time
HELD = np.dtype([("number", "<i8"), ("key", "<u8")])


def hash_windows(shard: int, *, words: int, folder: Path) -> None:
    """Writes windows/SHARD-RUN.npy: the hashes of a shard's passages of `words` words.

    Documents that are dropped as duplicates have none.
    """
    done = folder / "windows" / f"{shard:06d}.done"
    if done.exists():
        return
    gone = keys.dropped(folder)
    file = pyarrow.parquet.ParquetFile(folder / "clean" / f"{shard:06d}.parquet")
    start = 0
    for run, batch in enumerate(
        file.iter_batches(batch_size=RUN_ROWS, columns=["text"])
    ):
        number = keys.document_numbers(shard, batch.num_rows, start=start)
        start += batch.num_rows
        stays = ~keys.among(number, gone)
        texts = batch.column(0).to_pylist()
        hashes = [
            window_hashes(text, n=words) if stay else np.zeros(0, np.uint64)
            for text, stay in zip(texts, stays, strict=True)
        ]
        of = np.repeat(number, [len(some) for some in hashes])
        path = folder / "windows" / f"{shard:06d}-{run:06d}.npy"
        keys.write_run(path, np.concatenate(hashes), of)
    done.touch()


def find_held(part: int, *, parts: int, folder: Path) -> None:
    """Writes held/PART.npy: HELD [n], passages of documents that are not the first."""
    done = folder / "held" / f"{part:04d}.npy"
    if done.exists():
        return
    key, number = keys.read_part(folder / "windows", part, parts=parts)
    later = keys.first_of_each(key, number) != number
    held = np.empty(int(later.sum()), HELD)
    held["key"], held["number"] = key[later], number[later]
    keys.save(done, held)


class Cutter:
    """Cuts from each document what an earlier one holds.

    It has in memory what all documents share: 16 bytes for each passage held before.
    """

    def __init__(self, folder: Path, *, words: int):
        found = [np.load(path) for path in sorted((folder / "held").glob("*.npy"))]
        self._held = np.concatenate([np.zeros(0, HELD), *found])
        self._held.sort(order=["number", "key"])
        self._words = words

    def cut(self, number: int, text: str) -> tuple[str, int]:
        """Returns the text of a document without it, and the characters that went."""
        first, last = np.searchsorted(self._held["number"], [number, number + 1])
        return cut(text, self._held["key"][first:last], n=self._words)

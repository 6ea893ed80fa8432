"""Keys of documents on disk: sorted runs that are read by ranges of keys.

A document is a number: its shard and its row there. Shards are numbered in order of
preference, so of documents that share a key the lowest number is the preferred one.
Whoever groups by key takes one range after the other, as large as fits in memory; how
many ranges there are does not change what is found.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROW_BITS = 32
PART_KEYS = 1 << 20  # that one process sorts at a time
KEY = np.dtype([("key", "<u8"), ("number", "<i8")])


def document_numbers(shard: int, rows: int, *, start: int = 0) -> np.ndarray:
    """Returns the numbers int64 [rows] of a shard's documents from row `start` on."""
    return (np.int64(shard) << ROW_BITS) | np.arange(start, start + rows)


def shard_and_row(number: int) -> tuple[int, int]:
    """Returns where a document is."""
    return number >> ROW_BITS, number & ((1 << ROW_BITS) - 1)


def parts_for(keys: int) -> int:
    """Returns into how many parts so many keys are split."""
    return max(1, -(-keys // PART_KEYS))


def write_run(path: Path, key: np.ndarray, number: np.ndarray) -> None:
    """Writes keys [n] and the documents that have them, sorted."""
    run = np.empty(key.size, KEY)
    run["key"], run["number"] = key.ravel(), number.ravel()
    run.sort(order=["key", "number"])
    save(path, run)


def count_keys(folder: Path) -> int:
    """Returns how many keys the runs of a folder hold."""
    return sum(np.load(path, mmap_mode="r").size for path in folder.glob("*.npy"))


def read_part(folder: Path, part: int, *, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the keys of one range of all runs, sorted, and their documents."""
    size = (1 << 64) // parts
    first, last = part * size, (part + 1) * size if part < parts - 1 else 1 << 64
    slices = [np.zeros(0, KEY)]
    for path in sorted(folder.glob("*.npy")):
        run = np.load(path, mmap_mode="r")
        start = np.searchsorted(run["key"], np.uint64(first))
        stop = np.searchsorted(run["key"], np.uint64(last - 1), "right")
        slices.append(np.array(run[start:stop]))
    found = np.concatenate(slices)
    found.sort(order=["key", "number"])
    return found["key"], found["number"]


def first_of_each(key: np.ndarray, number: np.ndarray) -> np.ndarray:
    """Returns, of sorted keys, the first document that has the key of each."""
    begins = np.concatenate([[True], key[1:] != key[:-1]])[: len(key)]
    return number[np.flatnonzero(begins)[np.cumsum(begins) - 1]]


def drop(folder: Path) -> None:
    """Writes dropped.npy: the documents of exact.npy and near.npy that go, sorted."""
    pairs = [np.load(folder / f"{name}.npy")[:, 0] for name in ("exact", "near")]
    save(folder / "dropped.npy", np.unique(np.concatenate(pairs)))


def dropped(folder: Path) -> np.ndarray:
    """Returns the numbers of the documents that are copies of others, sorted."""
    return np.load(folder / "dropped.npy", mmap_mode="r")


def among(numbers: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Returns which of `numbers` are in `held`, sorted numbers that may be many."""
    if not len(held):
        return np.zeros(len(numbers), bool)
    nearest = np.minimum(np.searchsorted(held, numbers), len(held) - 1)
    return held[nearest] == numbers


def save(path: Path, array: np.ndarray) -> None:
    """Writes an array under its name when it is whole."""
    with whole(path) as unfinished, open(unfinished, "wb") as file:
        np.save(file, array)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yields a name to write, which is `path` once it is written and on the disk."""
    unfinished = path.with_suffix(f".{secrets.token_hex(4)}.partial")
    try:
        yield unfinished
        with open(unfinished, "rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)

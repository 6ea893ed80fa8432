"""Which documents say what another says: exactly, or nearly.

A document is a number: its shard and its row there. Shards are numbered in order of
preference, so of documents that are alike the lowest number is kept. Keys are split
into parts that fit in memory; which part a key is in, and how many there are, does not
change what is found.

Near duplicates share a band of their MinHash signatures (Broder 1997; Leskovec et al.,
"Mining of Massive Datasets", ch. 3) and are as similar as asked for by all of them.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet

from lmx.curate import minhash

ROW_BITS = 32
PART_KEYS = 1 << 20  # that one process sorts at a time
KEY = np.dtype([("key", "<u8"), ("number", "<i8")])
PERMUTATIONS = 128
RUN_ROWS = 4096  # documents whose signatures are in memory at a time
PAIRS = 1 << 14  # compared at a time


def document_numbers(shard: int, rows: int, *, start: int = 0) -> np.ndarray:
    """Returns the numbers int64 [rows] of a shard's documents from row `start` on."""
    return (np.int64(shard) << ROW_BITS) | np.arange(start, start + rows)


def bands(similarity: float) -> int:
    """Returns how many keys a document has where near duplicates are looked for."""
    return minhash.choose_bands(similarity, PERMUTATIONS)[0]


def parts_for(keys: int) -> int:
    """Returns into how many parts so many keys are split."""
    return max(1, -(-keys // PART_KEYS))


def find_exact(part: int, *, parts: int, shards: Sequence[int], folder: Path) -> None:
    """Writes exact/PART.npy: int64 [n, 2], the dropped document and the kept one."""
    done = folder / "exact" / f"{part:04d}.npy"
    if done.exists():
        return
    keys, numbers = [], []
    for shard in shards:
        path = folder / "clean" / f"{shard:06d}.parquet"
        column = pyarrow.parquet.read_table(path, columns=["fingerprint"]).column(0)
        content = b"".join(column.to_pylist())
        key = np.frombuffer(content, "<u8").reshape(-1, 2)
        mine = key[:, 0] % np.uint64(parts) == part
        keys.append(key[mine])
        numbers.append(document_numbers(shard, len(key))[mine])
    key, number = np.concatenate(keys), np.concatenate(numbers)
    order = np.lexsort((number, key[:, 1], key[:, 0]))
    key, number = key[order], number[order]
    same = (key[1:] == key[:-1]).all(axis=1)
    starts = np.flatnonzero(np.concatenate([[True], ~same]))
    first = number[starts[np.cumsum(np.concatenate([[True], ~same])) - 1]]
    again = np.concatenate([[False], same])
    _save(done, np.stack([number[again], first[again]], axis=1))


def sign(shard: int, *, similarity: float, folder: Path) -> None:
    """Writes a shard's MinHash signatures, and the keys of its bands.

    signatures/SHARD.bin is uint32 [rows, PERMUTATIONS]; keys/SHARD-RUN.npy is KEY [n],
    sorted, of the run's documents that are no exact duplicates.
    """
    done = folder / "signatures" / f"{shard:06d}.bin"
    if done.exists():
        return
    gone = np.load(folder / "exact.npy", mmap_mode="r")[:, 0]
    count, rows = minhash.choose_bands(similarity, PERMUTATIONS)
    file = pyarrow.parquet.ParquetFile(folder / "clean" / f"{shard:06d}.parquet")
    partial, start = _partial(done), 0
    with open(partial, "wb") as signed:
        for run, batch in enumerate(
            file.iter_batches(batch_size=RUN_ROWS, columns=["text"])
        ):
            signatures = minhash.signatures(
                batch.column(0).to_pylist(), permutations=PERMUTATIONS
            )
            signed.write(signatures.tobytes())
            number = document_numbers(shard, batch.num_rows, start=start)
            start += batch.num_rows
            left = ~np.isin(number, gone)
            key = minhash.bands(signatures[left], bands=count, rows=rows)
            found = np.empty(key.size, KEY)
            found["key"] = key.ravel()
            found["number"] = np.repeat(number[left], count)
            found.sort(order=["key", "number"])
            _save(folder / "keys" / f"{shard:06d}-{run:06d}.npy", found)
    os.replace(partial, done)


def find_near(
    part: int,
    *,
    parts: int,
    similarity: float,
    folder: Path,
) -> None:
    """Writes near/PART.npy: int64 [n, 2], pairs of documents as similar as asked for.

    A part is a range of keys: a slice of every run's.
    """
    done = folder / "near" / f"{part:04d}.npy"
    if done.exists():
        return
    size = (1 << 64) // parts
    first, last = part * size, (part + 1) * size if part < parts - 1 else 1 << 64
    slices = [np.zeros(0, KEY)]
    for path in sorted((folder / "keys").glob("*.npy")):
        keys = np.load(path, mmap_mode="r")
        start = np.searchsorted(keys["key"], np.uint64(first))
        stop = np.searchsorted(keys["key"], np.uint64(last - 1), "right")
        slices.append(np.array(keys[start:stop]))
    found = np.concatenate(slices)
    found.sort(order=["key", "number"])
    key, number = found["key"], found["number"]
    begins = np.concatenate([[True], key[1:] != key[:-1]])
    first_of = number[np.flatnonzero(begins)[np.cumsum(begins) - 1]]
    again = np.flatnonzero(~begins)
    # With its neighbour and with the first: neither alone finds every chain.
    left = np.concatenate([number[again - 1], first_of[again]])
    pairs = np.stack([left, np.concatenate([number[again]] * 2)], axis=1)
    pairs = np.unique(pairs, axis=0)
    least = minhash.least_estimate(similarity, PERMUTATIONS)
    close = [some[_similarity(some, folder) >= least] for some in _slices(pairs, PAIRS)]
    _save(done, np.concatenate([np.zeros((0, 2), np.int64), *close]))


def gather(name: str, *, folder: Path) -> np.ndarray:
    """Returns the pairs of all parts of a stage, sorted, each once."""
    found = [np.load(path) for path in sorted((folder / name).glob("*.npy"))]
    pairs = np.concatenate([np.zeros((0, 2), np.int64), *found])
    return np.unique(pairs, axis=0)


def clusters(pairs: np.ndarray) -> np.ndarray:
    """Returns [n, 2]: each document of a connected group, and the lowest of it."""
    number, index = np.unique(pairs, return_inverse=True)
    index = index.reshape(pairs.shape)
    label = np.arange(len(number))
    while True:
        lowest = label[index].min(axis=1)
        before = label.copy()
        np.minimum.at(label, index[:, 0], lowest)
        np.minimum.at(label, index[:, 1], lowest)
        label = label[label]
        if (label == before).all():
            return np.stack([number, number[label]], axis=1)


def _similarity(pairs: np.ndarray, folder: Path) -> np.ndarray:
    """Returns how similar the documents of each pair are, by their signatures."""
    left, right = (_rows(pairs[:, side], folder) for side in (0, 1))
    return minhash.jaccard(left, right)


def _rows(numbers: np.ndarray, folder: Path) -> np.ndarray:
    """Returns the signatures of documents of any shards."""
    shards = numbers >> ROW_BITS
    signed = np.zeros((len(numbers), PERMUTATIONS), np.uint32)
    for shard in np.unique(shards):
        mine = shards == shard
        rows = numbers[mine] & ((1 << ROW_BITS) - 1)
        signed[mine] = _signatures(int(shard), folder)[rows]
    return signed


@functools.lru_cache(maxsize=64)
def _signatures(shard: int, folder: Path) -> np.ndarray:
    path = folder / "signatures" / f"{shard:06d}.bin"
    return np.memmap(path, np.uint32, "r").reshape(-1, PERMUTATIONS)


def _slices(array: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(array), size):
        yield array[start : start + size]


def _save(path: Path, array: np.ndarray) -> None:
    """Writes an array under its name when it is whole."""
    partial = _partial(path)
    with open(partial, "wb") as file:
        np.save(file, array)
    os.replace(partial, path)


def _partial(path: Path) -> Path:
    """Returns a name for `path` while it is written, of this process alone."""
    return path.with_suffix(f".{os.getpid()}.partial")

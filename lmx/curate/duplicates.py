"""Which documents say what another says: exactly, or nearly.

Of documents that are alike the one with the lowest number (`keys`) is kept.
Near duplicates share a band of their MinHash signatures (Broder 1997; Leskovec et al.,
"Mining of Massive Datasets", ch. 3) and are as similar as asked for by all of them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet

from lmx.curate import keys, minhash

PERMUTATIONS = 128
PAIRS = 1 << 14  # compared at a time


def find_exact(part: int, *, parts: int, shards: Sequence[int], folder: Path) -> None:
    """Writes exact/PART.npy: int64 [n, 2], the dropped document and the kept one."""
    done = folder / "exact" / f"{part:04d}.npy"
    if done.exists():
        return
    fingerprints, numbers = [], []
    for shard in shards:
        path = folder / "clean" / f"{shard:06d}.parquet"
        column = pyarrow.parquet.read_table(path, columns=["fingerprint"]).column(0)
        content = b"".join(column.to_pylist())
        key = np.frombuffer(content, "<u8").reshape(-1, 2)
        mine = key[:, 0] % np.uint64(parts) == part
        fingerprints.append(key[mine])
        numbers.append(keys.document_numbers(shard, len(key))[mine])
    key, number = np.concatenate(fingerprints), np.concatenate(numbers)
    order = np.lexsort((number, key[:, 1], key[:, 0]))
    key, number = key[order], number[order]
    again = np.zeros(len(key), bool)
    again[1:] = (key[1:] == key[:-1]).all(axis=1)
    first = number[np.flatnonzero(~again)[np.cumsum(~again) - 1]]
    keys.save(done, np.stack([number[again], first[again]], axis=1))


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
    start = 0
    with keys.whole(done) as unfinished, open(unfinished, "wb") as signed:
        for run in range(file.num_row_groups):
            texts = file.read_row_group(run, columns=["text"]).column(0).to_pylist()
            signatures = minhash.signatures(texts, permutations=PERMUTATIONS)
            signed.write(signatures.tobytes())
            number = keys.document_numbers(shard, len(texts), start=start)
            start += len(texts)
            left = ~keys.among(number, gone)
            key = minhash.bands(signatures[left], bands=count, rows=rows)
            path = folder / "keys" / f"{shard:06d}-{run:06d}.npy"
            keys.write_run(path, key, np.repeat(number[left], count))
        signed.flush()


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
    key, number = keys.read_part(folder / "keys", part, parts=parts)
    again = np.flatnonzero(key[1:] == key[:-1]) + 1
    # With its neighbour and with the first: neither alone finds every chain.
    first = keys.first_of_each(key, number)[again]
    left = np.concatenate([number[again - 1], first])
    pairs = np.stack([left, np.concatenate([number[again]] * 2)], axis=1)
    pairs = np.unique(pairs, axis=0)
    least = minhash.least_estimate(similarity, PERMUTATIONS)
    close = [some[_similarity(some, folder) >= least] for some in _slices(pairs, PAIRS)]
    keys.save(done, np.concatenate([np.zeros((0, 2), np.int64), *close]))


def bands(similarity: float) -> int:
    """Returns how many keys a document has where near duplicates are looked for."""
    return minhash.choose_bands(similarity, PERMUTATIONS)[0]


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
    shards = numbers >> keys.ROW_BITS
    signed = np.zeros((len(numbers), PERMUTATIONS), np.uint32)
    for shard in np.unique(shards):
        mine = shards == shard
        rows = numbers[mine] & ((1 << keys.ROW_BITS) - 1)
        signed[mine] = _signatures(int(shard), folder)[rows]
    return signed


@functools.lru_cache(maxsize=64)
def _signatures(shard: int, folder: Path) -> np.ndarray:
    path = folder / "signatures" / f"{shard:06d}.bin"
    return np.memmap(path, np.uint32, "r").reshape(-1, PERMUTATIONS)


def _slices(array: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(array), size):
        yield array[start : start + size]

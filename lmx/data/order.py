"""Which row comes when: arithmetic on (seed, step, row), with no state and no table.

A shuffled epoch is a keyed permutation of range(n), evaluated where it is asked for: a
Feistel network over the smallest even number of bits that holds n, walked along its
cycle until it lands below n (Black & Rogaway, "Ciphers with arbitrary finite domains",
2002). This is for mixing data, not for secrets.
"""

from __future__ import annotations

import numpy as np

from lmx.core import errors

ROUNDS = 6
MASK_64 = (1 << 64) - 1


def global_rows(
    start: int, stop: int, *, rows: int, seed: int, shuffle: str
) -> np.ndarray:
    """Returns which stored rows, int64 [stop - start], come start-th to stop-th.

    Position p of the endless sequence is in epoch p // rows, so batches are never
    short. Every epoch holds each of the `rows` once: in a new order of its own where
    `shuffle` is 'epoch', in the stored one where it is 'none'.
    """
    turns = np.arange(start, stop, dtype=np.int64)
    return rows_of_turns(turns, rows=rows, seed=seed, shuffle=shuffle)


def rows_of_turns(
    turns: np.ndarray, *, rows: int, seed: int, shuffle: str
) -> np.ndarray:
    """Returns the stored row at each of `turns`, positions of that endless sequence."""
    epochs, index = np.divmod(turns, rows)
    order = errors.pick({"epoch": permute, "none": _stored}, shuffle, "shuffle")
    return order(index, rows=rows, seed=seed, epochs=epochs)


def permute(
    index: np.ndarray, *, rows: int, seed: int, epochs: np.ndarray | int
) -> np.ndarray:
    """Returns where a permutation of range(rows) takes each index, int64.

    There is one permutation for each (seed, epoch); `epochs` broadcasts over `index`.
    """
    half = np.uint64(max(2, (max(rows - 1, 1).bit_length() + 1) // 2))
    low = (np.uint64(1) << half) - np.uint64(1)
    seeds = np.uint64(_mix_int(seed & MASK_64))
    keys = _mix(np.broadcast_to(epochs, index.shape).astype(np.uint64) + seeds)
    value = index.astype(np.uint64)
    outside = np.ones(index.shape, bool)
    while outside.any():  # at most 4 tries on average (16 where rows is 1)
        value[outside] = _feistel(value[outside], keys[outside], half, low)
        outside = value >= np.uint64(rows)
    return value.astype(np.int64)


def _stored(
    index: np.ndarray, *, rows: int, seed: int, epochs: np.ndarray | int
) -> np.ndarray:
    del rows, seed, epochs  # the stored order depends on nothing
    return index


def _feistel(
    value: np.ndarray, keys: np.ndarray, half: np.uint64, low: np.uint64
) -> np.ndarray:
    """Permutes the numbers of 2 · half bits."""
    left, right = value >> half, value & low
    for number in range(ROUNDS):
        mixed = _mix(keys + (right << np.uint64(8)) + np.uint64(number))
        left, right = right, (left ^ mixed) & low
    return (left << half) | right


def _mix(value: np.ndarray) -> np.ndarray:
    """Scrambles 64-bit numbers one to one (the finaliser of SplitMix64)."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _mix_int(value: int) -> int:
    return int(_mix(np.array([value], np.uint64))[0])

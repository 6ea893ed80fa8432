"""Which row comes when: arithmetic on (seed, step, row), with no state and no table.

A shuffled epoch is a keyed permutation of range(n), evaluated where it is asked for: a
Feistel network over the smallest even number of bits that holds n, walked along its
cycle until it lands below n (Black & Rogaway, "Ciphers with arbitrary finite domains",
2002). This is for mixing data, not for secrets.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmx.core import errors

ROUNDS = 6
MASK_64 = (1 << 64) - 1


class Orders:
    """The endless sequence of rows of each of several sources.

    Turn t of a source is in its epoch t // rows. Every epoch holds each of its rows
    once: in a new order of its own where `shuffle` is 'epoch', in the stored one where
    it is 'none'.
    """

    def __init__(self, rows: Sequence[int], *, seeds: Sequence[int], shuffle: str):
        """Takes how many rows each source has, and its seed, any whole number."""
        self._shuffled = errors.pick({"epoch": True, "none": False}, shuffle, "shuffle")
        self._rows = np.array(rows, np.int64)
        halves = [max(2, (max(n - 1, 1).bit_length() + 1) // 2) for n in rows]
        self._halves = np.array(halves, np.uint64)
        self._seeds = _mix(np.array([seed & MASK_64 for seed in seeds], np.uint64))

    def rows(self, sources: np.ndarray, turns: np.ndarray) -> np.ndarray:
        """Returns the stored row, int64, at each turn of its source."""
        epochs, index = np.divmod(turns, self._rows[sources])
        if not self._shuffled:
            return index
        keys = _mix(epochs.astype(np.uint64) + self._seeds[sources])
        halves, limits = self._halves[sources], self._rows[sources].astype(np.uint64)
        value = index.astype(np.uint64)
        outside = np.arange(len(value))
        while len(outside):  # at most 4 tries on average (16 where rows is 1)
            one_try = _feistel(value[outside], keys[outside], halves[outside])
            value[outside] = one_try
            outside = outside[one_try >= limits[outside]]
        return value.astype(np.int64)


def _feistel(value: np.ndarray, keys: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Permutes the numbers of 2 · half bits."""
    low = (np.uint64(1) << half) - np.uint64(1)
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

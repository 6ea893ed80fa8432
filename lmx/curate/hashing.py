"""Hashes of spans of an array, all at once: words of characters, n-grams of words.

64-bit, vectorised in NumPy, the same on every machine and in every process. Not for
secrets: whoever knows the constants can make two spans collide.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray

BASE = 0x9E3779B97F4A7C15  # odd, so it has an inverse modulo 2^64
INVERSE = pow(BASE, -1, 1 << 64)


def mix(values: Array) -> Array:
    """Returns `values` scrambled one to one: the finalizer of SplitMix64, uint64."""
    mixed = values.astype(np.uint64)  # a copy, changed in place
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def _powers(base: int, count: int) -> Array:
    """Returns base^0, base^1, … modulo 2^64, uint64 [count]."""
    powers = np.full(count, base, np.uint64)
    powers[:1] = 1
    return np.cumprod(powers, out=powers)


def hash_spans(values: Array, starts: Array, ends: Array) -> Array:
    """Returns a hash of each `values[start:end]`, wherever in `values` it stands.

    `values` uint64 [n], well mixed (see `mix`); spans may overlap. Returns uint64
    [spans]: a polynomial modulo 2^64 over prefix sums, so a span costs the same
    whatever its length.
    """
    count = len(values) + 1
    prefix = np.zeros(count, np.uint64)
    np.cumsum(values * _powers(BASE, count)[:-1], out=prefix[1:])
    sums = (prefix[ends] - prefix[starts]) * _powers(INVERSE, count)[starts]
    return mix(sums + (ends - starts).astype(np.uint64))


def hash_windows(values: Array, size: int) -> Array:
    """Returns the hashes of the windows of `size` values, uint64 [n - size + 1]."""
    starts = np.arange(max(len(values) - size + 1, 0))
    return hash_spans(values, starts, starts + size)

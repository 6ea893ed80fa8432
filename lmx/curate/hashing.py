"""Hashes of spans of an array, all at once: words of characters, n-grams of words.

64-bit, vectorised in NumPy, the same on every machine and in every process. Not for
secrets: whoever knows the constants can make two spans collide.
"""

from __future__ import annotations

from typing import NamedTuple

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


class Sums(NamedTuple):
    """Prefix sums of an array, from which the hash of any span takes one step.

    Polynomials modulo 2^64, so a span costs the same whatever its length, and its hash
    does not depend on where in the array it stands.
    """

    prefix: Array  # uint64 [n + 1]
    inverses: Array  # uint64 [n + 1]: what moves a span to the start

    @classmethod
    def of(cls, values: Array) -> Sums:
        """Returns the sums of `values`, uint64 [n], well mixed (see `mix`)."""
        count = len(values) + 1
        prefix = np.zeros(count, np.uint64)
        np.cumsum(values * _powers(BASE, count)[:-1], out=prefix[1:])
        return cls(prefix, _powers(INVERSE, count))

    def spans(self, starts: Array, ends: Array) -> Array:
        """Returns the hash of each span from start to end, uint64 [spans]."""
        sums = (self.prefix[ends] - self.prefix[starts]) * self.inverses[starts]
        return mix(sums + (ends - starts).astype(np.uint64))

    def windows(self, size: int) -> Array:
        """Returns the hash of each span of that size, uint64 [n - size + 1]."""
        count = max(len(self.prefix) - size, 0)
        sums = self.prefix[size:] - self.prefix[:count]
        return mix(sums * self.inverses[:count] + np.uint64(size))


def hash_spans(values: Array, starts: Array, ends: Array) -> Array:
    """Returns a hash of each `values[start:end]`; see `Sums`."""
    return Sums.of(values).spans(starts, ends)


def hash_windows(values: Array, size: int) -> Array:
    """Returns the hashes of the windows of `size` values; see `Sums`."""
    return Sums.of(values).windows(size)

"""Which source, and which of its rows, comes at each position: arithmetic, no state.

Sources are the leaves of a balanced tree. Of the first p rows that reach a node with
weights a and b below it, floor(p · a / (a + b)) go left and the rest go right: rows of
both alternate as evenly as whole numbers can (Bresenham 1965, "Algorithm for computer
control of a digital plotter"), and how many went where before p takes one division a
level. So after p rows in all every source had its share to within one row a level, and
exactly its share where p is a multiple of the sum of the weights. Within a source each
epoch is a keyed permutation (`order`). Texts of a config and files are not known here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import gcd, lcm
from typing import NamedTuple

import numpy as np

from lmx.core import errors
from lmx.data.order import Orders

LARGEST_TOTAL = 1 << 31
"""Products of a remainder and a weight must fit 64 bits."""
ROUNDED_TOTAL = 1 << 30


class Stage(NamedTuple):
    """From which position on, which whole-number weight each source has."""

    start: int
    weights: tuple[int, ...]


class Mixture:
    """The endless sequence of rows: `rows(start, stop)` is the same whoever asks.

    A row's id counts through the sources in their order: ids of the first source are
    below its number of rows, those of the second follow, and so on.
    """

    def __init__(
        self,
        rows: Mapping[str, int],
        *,
        seed: int,
        shuffle: str,
        stages: Sequence[Stage] | None = None,
    ):
        """Takes the rows of each source, and stages; None is proportional to rows.

        Stages begin at position 0 and come in order. Raises a `UserError` for a stage
        without weights, or with one for a source that has no rows.
        """
        self.names = tuple(rows)
        self.num_rows = np.array(list(rows.values()), np.int64)
        self.first_rows = np.concatenate([[0], np.cumsum(self.num_rows)])
        stages = stages or [Stage(0, whole_numbers(list(rows.values())))]
        assert stages[0].start == 0
        self._starts = np.array([stage.start for stage in stages], np.int64)
        assert (np.diff(self._starts) >= 0).all()
        weights = np.array([stage.weights for stage in stages], np.int64)
        for name, count, column in zip(
            self.names, rows.values(), weights.T, strict=True
        ):
            if column.any() and not count:
                raise errors.UserError(
                    f"source {name!r} has a weight and no rows; give it weight 0"
                )
        if not weights.any(axis=1).all():
            raise errors.UserError("all weights of a mixture are 0; raise one")
        self._sums = np.concatenate(
            [np.zeros((len(stages), 1), np.int64), np.cumsum(weights, axis=1)], axis=1
        )
        self._before = np.zeros((len(stages), len(rows)), np.int64)
        for stage in range(1, len(stages)):
            length = self._starts[stage] - self._starts[stage - 1]
            passed = self._shares(stage - 1, int(length))
            self._before[stage] = self._before[stage - 1] + passed
        seeds = [_seed_of(name, seed, lone=len(rows) == 1) for name in rows]
        self._orders = Orders(list(rows.values()), seeds=seeds, shuffle=shuffle)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Returns the ids, int64 [stop - start], of the rows at these positions."""
        sources, turns = self.turns(start, stop)
        return self.first_rows[sources] + self._orders.rows(sources, turns)

    def turns(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the source at each position, and how often it had come before."""
        positions = np.arange(start, stop, dtype=np.int64)
        stages = np.searchsorted(self._starts, positions, "right") - 1
        turn = positions - self._starts[stages]
        low = np.zeros(len(positions), np.int64)
        high = np.full(len(positions), len(self.names), np.int64)
        while (open_ := high - low > 1).any():
            middle = np.where(open_, (low + high) // 2, high)
            sums = self._sums[stages, low], self._sums[stages, middle]
            left, total = sums[1] - sums[0], self._sums[stages, high] - sums[0]
            before = _share(turn, left, total)
            goes_left = _share(turn + 1, left, total) > before
            turn = np.where(goes_left, before, turn - before)
            high, low = (
                np.where(goes_left, middle, high),
                np.where(goes_left, low, middle),
            )
        return low, turn + self._before[stages, low]

    def counts(self, position: int) -> dict[str, int]:
        """Returns how many rows of each source come before a position, in O(1)."""
        stage = int(np.searchsorted(self._starts, position, "right")) - 1
        inside = self._shares(stage, position - int(self._starts[stage]))
        found = self._before[stage] + inside
        return dict(zip(self.names, found.tolist(), strict=True))

    def _shares(self, stage: int, position: int) -> np.ndarray:
        """Returns how many of the first rows of a stage are of each source."""
        sums = self._sums[stage].tolist()
        found = np.zeros(len(self.names), np.int64)
        nodes = [(0, len(self.names), position)]
        while nodes:
            low, high, count = nodes.pop()
            if high - low == 1:
                found[low] = count
                continue
            middle = (low + high) // 2
            total = max(1, sums[high] - sums[low])
            left = count * (sums[middle] - sums[low]) // total
            nodes += [(low, middle, left), (middle, high, count - left)]
        return found


def whole_numbers(weights: Sequence[int | float | Fraction]) -> tuple[int, ...]:
    """Returns whole numbers in the proportion of `weights`, which are 0 or more.

    The proportion is exact where the sum fits 31 bits; beyond that a weight is rounded
    to a part in 2³⁰ of all, and one above 0 stays so.
    """
    exact = [Fraction(weight) for weight in weights]
    scale = lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * scale) for weight in exact]
    divisor = gcd(*whole) or 1
    whole = [weight // divisor for weight in whole]
    total = sum(whole)
    if total < LARGEST_TOTAL:
        return tuple(whole)
    return tuple(w and max(1, round(Fraction(w * ROUNDED_TOTAL, total))) for w in whole)


def _share(count: np.ndarray, part: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Returns floor(count · part / total) without a product beyond 64 bits."""
    total = np.maximum(total, 1)  # no row comes to a node without a weight
    whole, rest = np.divmod(count, total)
    return whole * part + rest * part // total


def _seed_of(name: str, seed: int, *, lone: bool) -> int:
    """Returns the seed of a source: parallel texts must not come in parallel order."""
    if lone:
        return seed
    return seed + int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")

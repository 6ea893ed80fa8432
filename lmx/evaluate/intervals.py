"""How sure a score is: bootstrap intervals, and paired comparisons of two models.

A metric is a function of the sum of each item's statistics, so resampled items are a
product of counts with these: means and corpus metrics alike.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lmx.tasks.task import Metric

RESAMPLES, LEVEL = 2000, 0.95
SWAPS = 10_000
ENUMERATED = 14  # differing items up to which all swaps are tried
AT_ONCE = 1 << 22  # counts held in memory


class Interval(NamedTuple):
    """A score and its bounds at the level `LEVEL`."""

    value: float
    low: float
    high: float


class Comparison(NamedTuple):
    """The second model minus the first, its bounds, and how likely chance is."""

    delta: float
    low: float
    high: float
    p_value: float
    test: str


def interval(metric: Metric, statistics: np.ndarray, *, seed: int) -> Interval:
    """Returns the metric of items [n, S] with its percentile bootstrap interval.

    Efron 1979; items are drawn with replacement.
    """
    value = float(metric.value(statistics.sum(axis=0)))
    drawn = np.concatenate(
        [
            metric.value(counts @ statistics)
            for counts in _resamples(len(statistics), seed)
        ]
    )
    return Interval(value, *_bounds(drawn))


def compare(
    metric: Metric, first: np.ndarray, second: np.ndarray, *, seed: int
) -> Comparison:
    """Returns how a second model differs from a first on the same items, [n, S] each.

    The p-value is two-sided, of the hypothesis that the models could be swapped on any
    item: exact for differences of one size (McNemar's, binomial) and for few of them,
    of `SWAPS` random swaps otherwise, counting the observed one.
    """
    delta = float(metric.value(second.sum(axis=0)) - metric.value(first.sum(axis=0)))
    drawn = np.concatenate(
        [
            metric.value(counts @ second) - metric.value(counts @ first)
            for counts in _resamples(len(first), seed)
        ]
    )
    p_value, test = _p_value(metric, first, second, delta, seed)
    return Comparison(delta, *_bounds(drawn), p_value, test)


def _resamples(items: int, seed: int) -> Iterator[np.ndarray]:
    """Yields how often each item is drawn, float64 [k, n], `RESAMPLES` in all."""
    generator = np.random.default_rng(seed)
    size = max(1, AT_ONCE // items)
    for start in range(0, RESAMPLES, size):
        count = min(size, RESAMPLES - start)
        drawn = generator.integers(0, items, (count, items))
        drawn += np.arange(count)[:, None] * items
        counts = np.bincount(drawn.ravel(), minlength=count * items)
        yield counts.reshape(count, items).astype(np.float64)


def _bounds(values: np.ndarray) -> tuple[float, float]:
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def _p_value(
    metric: Metric, first: np.ndarray, second: np.ndarray, delta: float, seed: int
) -> tuple[float, str]:
    change = second - first
    differing = change[np.any(change != 0, axis=-1)]
    n = len(differing)
    if n == 0:
        return 1.0, "no item differs"
    sizes = np.abs(differing)
    if np.all(sizes == sizes[0]) and np.count_nonzero(sizes[0]) == 1:
        up = int((differing.sum(axis=-1) > 0).sum())
        return binomial(up, n), "McNemar, exact"
    if n <= ENUMERATED:
        swaps = np.array(list(itertools.product((0.0, 1.0), repeat=n)))
        extreme = _swapped(metric, first, second, differing, swaps) >= _just(delta)
        return float(extreme.mean()), "all swaps"
    generator, extreme_count = np.random.default_rng(seed), 0
    size = max(1, AT_ONCE // n)
    for start in range(0, SWAPS, size):
        count = min(size, SWAPS - start)
        swaps = generator.integers(0, 2, (count, n)).astype(np.float64)
        found = _swapped(metric, first, second, differing, swaps) >= _just(delta)
        extreme_count += int(found.sum())
    return (extreme_count + 1) / (SWAPS + 1), f"{SWAPS:,} random swaps"


def _swapped(metric, first, second, differing, swaps) -> np.ndarray:
    """Returns |difference| where the items of each row of `swaps` change sides."""
    moved = swaps @ differing
    before, after = first.sum(axis=0) + moved, second.sum(axis=0) - moved
    return np.abs(metric.value(after) - metric.value(before))


def _just(delta: float) -> float:
    """Returns |delta| less what rounding may take from an equal difference."""
    return abs(delta) * (1 - 1e-9) - 1e-12


def binomial(up: int, n: int) -> float:
    """Returns the two-sided p-value of `up` of `n` fair coins."""
    few = min(up, n - up)
    tail = sum(math.comb(n, k) for k in range(few + 1))
    return min(1.0, 2 * tail / 2**n)

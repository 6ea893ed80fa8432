"""Intervals and p-values: those of scipy, of all swaps, and of what must hold."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmx.evaluate.intervals import binomial, compare, interval
from lmx.tasks.task import Metric, ratio

MEAN = Metric("mean", lambda item, outcome: (0.0, 1.0), ratio)


def scores(values):
    return np.stack([np.asarray(values, np.float64), np.ones(len(values))], axis=-1)


@given(n=st.integers(1, 40), up=st.integers(0, 40))
def test_the_binomial_test_is_that_of_scipy(n, up):
    stats = pytest.importorskip("scipy.stats")
    up = min(up, n)
    assert binomial(up, n) == pytest.approx(stats.binomtest(up, n, 0.5).pvalue)


def test_an_interval_is_near_the_normal_one_and_repeatable():
    values = np.random.default_rng(0).normal(3.0, 1.0, 400)
    found = interval(MEAN, scores(values), seed=0)
    wide = 1.96 * values.std() / 20
    assert found == interval(MEAN, scores(values), seed=0)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - wide, abs=0.1 * wide)
    assert found.high == pytest.approx(values.mean() + wide, abs=0.1 * wide)


def test_right_or_wrong_is_compared_exactly():
    first = np.array([1, 1, 1, 0, 0, 0, 0, 0, 1, 1.0])
    second = np.array([1, 1, 0, 1, 1, 1, 1, 1, 1, 1.0])
    found = compare(MEAN, scores(first), scores(second), seed=0)
    assert found.test == "McNemar, exact"
    assert found.p_value == pytest.approx(binomial(5, 6))
    assert found.delta == pytest.approx(0.4)
    assert found.low <= found.delta <= found.high


def test_few_items_are_compared_with_all_swaps():
    drawn = np.random.default_rng(1)
    first, second = drawn.normal(size=(2, 8))
    found = compare(MEAN, scores(first), scores(second), seed=0)
    change = second - first
    means = [
        abs(np.mean(change * signs)) for signs in itertools.product((-1, 1), repeat=8)
    ]
    assert found.p_value == pytest.approx(
        np.mean(np.array(means) >= abs(change.mean()) - 1e-12)
    )


def test_many_items_are_compared_with_swaps_at_random():
    drawn = np.random.default_rng(2)
    first = drawn.normal(size=200)
    alike, better = first + drawn.normal(0, 1, 200), first + drawn.normal(0.5, 1, 200)
    stats = pytest.importorskip("scipy.stats")
    for second in (alike, better):
        found = compare(MEAN, scores(first), scores(second), seed=0)
        expected = stats.ttest_rel(first, second).pvalue
        assert found.p_value == pytest.approx(expected, abs=0.02)
    same = compare(MEAN, scores(first), scores(first), seed=0)
    assert (same.delta, same.p_value) == (0.0, 1.0)

"""A mixture is one sequence of rows, with exact shares, wherever one looks into it."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmx.core.errors import UserError
from lmx.data.mixture import Mixture, Stage, whole_numbers
from lmx.data.order import Orders

WEIGHTS = st.lists(st.integers(0, 12), min_size=1, max_size=9).filter(any)


def mixture(weights, rows=None, *, stages=None, seed=0, shuffle="epoch"):
    rows = rows or [7 + 3 * n for n in range(len(weights))]
    return Mixture(
        {f"source{n}": count for n, count in enumerate(rows)},
        seed=seed,
        shuffle=shuffle,
        stages=stages or [Stage(0, tuple(weights))],
    )


def naive(weights, positions):
    """The reference: one row after the other down the tree, counting what passed."""
    passed = Counter()

    def descend(low, high):
        node = (low, high)
        turn = passed[node]
        passed[node] += 1
        if high - low == 1:
            return low, turn
        middle = (low + high) // 2
        left = Fraction(sum(weights[low:middle]), sum(weights[low:high]))
        goes_left = math.floor((turn + 1) * left) > math.floor(turn * left)
        return descend(low, middle) if goes_left else descend(middle, high)

    return [descend(0, len(weights)) for _ in range(positions)]


@settings(deadline=None)
@given(weights=WEIGHTS, start=st.integers(0, 120), length=st.integers(0, 120))
def test_any_part_is_what_counting_from_the_start_gives(weights, start, length):
    sources, turns = mixture(weights).turns(start, start + length)
    found = list(zip(sources.tolist(), turns.tolist(), strict=True))
    assert found == naive(weights, start + length)[start:]


@settings(deadline=None)
@given(weights=WEIGHTS, patterns=st.integers(0, 10**9))
def test_shares_are_exact_after_whole_patterns(weights, patterns):
    counts = mixture(weights).counts(patterns * sum(weights))
    assert list(counts.values()) == [patterns * weight for weight in weights]


@settings(deadline=None)
@given(weights=WEIGHTS, position=st.integers(0, 10**12))
def test_shares_are_close_everywhere(weights, position):
    counts = mixture(weights).counts(position).values()
    levels = max(1, math.ceil(math.log2(len(weights))))
    assert sum(counts) == position
    for weight, count in zip(weights, counts, strict=True):
        assert abs(count - Fraction(position * weight, sum(weights))) <= levels


@settings(deadline=None)
@given(weights=WEIGHTS, position=st.integers(0, 10**12), length=st.integers(1, 50))
def test_far_away_turns_go_on_from_the_counts(weights, position, length):
    mix = mixture(weights)
    before = list(mix.counts(position).values())
    sources, turns = mix.turns(position, position + length)
    for source, turn in zip(sources, turns, strict=True):
        assert turn == before[source]
        before[source] += 1
    assert before == list(mix.counts(position + length).values())


@settings(deadline=None, max_examples=40)
@given(weights=WEIGHTS, seed=st.integers(0, 99), epochs=st.integers(1, 3))
def test_every_row_of_a_source_comes_once_in_each_of_its_epochs(weights, seed, epochs):
    mix = mixture(weights, seed=seed)
    length = max(
        -(-int(rows) * epochs * sum(weights) // weight) + sum(weights)
        for rows, weight in zip(mix.num_rows, weights, strict=True)
        if weight
    )
    ids = mix.rows(0, length)
    for source, rows in enumerate(mix.num_rows):
        mine = ids - mix.first_rows[source]
        mine = mine[(mine >= 0) & (mine < rows)]
        assert len(mine) >= epochs * rows if weights[source] else not len(mine)
        for epoch in range(len(mine) // rows):
            part = mine[epoch * rows : (epoch + 1) * rows]
            assert sorted(part) == list(range(rows))


@settings(deadline=None)
@given(
    weights=WEIGHTS,
    steps=st.integers(0, 10**9),
    shuffle=st.sampled_from(["epoch", "none"]),
)
def test_eight_then_four_then_sixteen_hosts_see_one_sequence(weights, steps, shuffle):
    mix, batch = mixture(weights, shuffle=shuffle), 32
    found = []
    for number, hosts in enumerate((8, 4, 16)):
        first, share = (steps + number) * batch, batch // hosts
        for host in range(hosts):
            start = first + host * share
            found += mix.rows(start, start + share).tolist()
    assert found == mix.rows(steps * batch, (steps + 3) * batch).tolist()


def test_a_lone_source_comes_as_it_did_without_a_mixture():
    ids = mixture([3], [50], seed=9).rows(40, 400)
    turns = np.arange(40, 400)
    expected = Orders([50], seeds=[9], shuffle="epoch").rows(0 * turns, turns)
    assert np.array_equal(ids, expected)


def test_sources_of_equal_length_come_in_orders_of_their_own():
    ids = mixture([1, 1], [1000, 1000]).rows(0, 2000)
    left, right = ids[ids < 1000], ids[ids >= 1000] - 1000
    assert (left == right).mean() < 0.01


@settings(deadline=None, max_examples=60)
@given(
    stages=st.lists(
        st.tuples(
            st.integers(0, 40), st.lists(st.integers(0, 5), min_size=3, max_size=3)
        ),
        min_size=1,
        max_size=4,
    ).filter(lambda stages: all(any(weights) for _, weights in stages))
)
def test_each_stage_has_its_own_weights_and_epochs_go_on_through_all(stages):
    starts = np.concatenate([[0], np.cumsum([length for length, _ in stages])])
    plan = [
        Stage(int(start), tuple(weights))
        for start, (_, weights) in zip(starts, stages, strict=False)
    ]
    mix = mixture([1, 1, 1], stages=plan)
    expected = Counter()
    for start, (length, weights) in zip(starts, stages, strict=False):
        sources, turns = mix.turns(int(start), int(start) + length)
        reference = [source for source, _ in naive(weights, length)]
        assert sources.tolist() == reference
        for source, turn in zip(sources, turns, strict=True):
            assert turn == expected[source]
            expected[source] += 1
    counts = list(mix.counts(int(starts[-1])).values())
    assert counts == [expected[source] for source in range(3)]


def test_weights_are_exact_as_whole_numbers_where_these_are_small():
    assert whole_numbers([Fraction("0.7"), Fraction("0.3")]) == (7, 3)
    assert whole_numbers([100, 50, 0]) == (2, 1, 0)
    rounded = whole_numbers([math.pi, math.e, 1e-15])
    assert sum(rounded) < 2**31
    assert rounded[2] == 1
    assert abs(rounded[0] / rounded[1] - math.pi / math.e) < 1e-8


def test_without_weights_sources_come_in_proportion_to_their_rows():
    mix = Mixture({"a": 30, "b": 10}, seed=0, shuffle="epoch")
    assert mix.counts(40) == {"a": 30, "b": 10}
    assert sorted(mix.rows(0, 40)) == list(range(40))


def test_weights_that_cannot_be_are_refused():
    with pytest.raises(UserError, match="'source1' has a weight and no rows"):
        mixture([1, 1], [3, 0])
    with pytest.raises(UserError, match="all weights of a mixture are 0"):
        mixture([0, 0])
    with pytest.raises(UserError, match="did you mean 'epoch'"):
        mixture([1], shuffle="epochs")

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmx.core.errors import UserError
from lmx.data.order import Orders

SEEDS = st.integers(-(2**70), 2**70)


def global_rows(start, stop, *, rows, seed, shuffle="epoch") -> np.ndarray:
    turns = np.arange(start, stop, dtype=np.int64)
    return Orders([rows], seeds=[seed], shuffle=shuffle).rows(0 * turns, turns)


def permute(index, *, rows, seed, epochs) -> np.ndarray:
    turns = np.asarray(epochs) * rows + index
    return Orders([rows], seeds=[seed], shuffle="epoch").rows(0 * turns, turns)


@settings(deadline=None)
@given(rows=st.integers(1, 3000), seed=SEEDS, epoch=st.integers(0, 2**40))
def test_every_epoch_is_a_permutation(rows, seed, epoch):
    found = permute(np.arange(rows), rows=rows, seed=seed, epochs=epoch)
    assert np.array_equal(np.sort(found), np.arange(rows))


@pytest.mark.parametrize("rows", [2**31 - 1, 2**40 + 7, 10**15])
def test_huge_row_counts_stay_in_range_and_do_not_collide(rows):
    index = np.unique(np.linspace(0, rows - 1, 5000).astype(np.int64))
    found = permute(index, rows=rows, seed=1, epochs=0)
    assert len(np.unique(found)) == len(index)
    assert found.min() >= 0
    assert found.max() < rows


def test_epochs_and_seeds_differ():
    orders = [
        permute(np.arange(200), rows=200, seed=seed, epochs=epoch).tolist()
        for seed in range(3)
        for epoch in range(3)
    ]
    assert len({tuple(order) for order in orders}) == 9


def test_rows_land_everywhere_equally_often():
    index, epochs = np.tile(np.arange(7), 4000), np.repeat(np.arange(4000), 7)
    found = permute(index, rows=7, seed=0, epochs=epochs)
    counts = np.zeros((7, 7))
    np.add.at(counts, (index, found), 1)
    # Chi-square with 36 degrees of freedom: above 80 once in 30,000 fair shuffles.
    expected = 4000 / 7
    assert ((counts - expected) ** 2 / expected).sum() < 80


@settings(deadline=None)
@given(
    rows=st.integers(1, 50),
    seed=SEEDS,
    cuts=st.lists(st.integers(0, 200), min_size=2, max_size=6).map(sorted),
    shuffle=st.sampled_from(["epoch", "none"]),
)
def test_any_cut_of_the_sequence_is_the_same_sequence(rows, seed, cuts, shuffle):
    def part(start: int, stop: int) -> list[int]:
        found = global_rows(start, stop, rows=rows, seed=seed, shuffle=shuffle)
        return found.tolist()

    joined = [row for a, b in itertools.pairwise(cuts) for row in part(a, b)]
    assert joined == part(cuts[0], cuts[-1])


@settings(deadline=None)
@given(rows=st.integers(1, 60), epochs=st.integers(1, 4))
def test_each_epoch_holds_each_row_once(rows, epochs):
    found = global_rows(0, rows * epochs, rows=rows, seed=3, shuffle="epoch")
    for epoch in found.reshape(epochs, rows):
        assert sorted(epoch) == list(range(rows))


def test_unshuffled_rows_come_as_stored():
    found = global_rows(3, 9, rows=4, seed=0, shuffle="none")
    assert found.tolist() == [3, 0, 1, 2, 3, 0]


def test_an_unknown_shuffle_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'epoch'"):
        global_rows(0, 1, rows=1, seed=0, shuffle="epochs")


def test_sources_together_are_each_on_its_own():
    rows, seeds = [1, 5, 64, 700], [3, -1, 2**70, 0]
    random = np.random.default_rng(0)
    sources, turns = random.integers(0, 4, 500), random.integers(0, 10**6, 500)
    found = Orders(rows, seeds=seeds, shuffle="epoch").rows(sources, turns)
    for source, turn, row in zip(sources, turns, found, strict=True):
        one = global_rows(turn, turn + 1, rows=rows[source], seed=seeds[source])
        assert one.tolist() == [row]


def test_the_order_is_the_same_in_every_release():
    # What a run has seen is told by arithmetic: a new order would spoil every resume.
    found = global_rows(0, 12, rows=6, seed=7)
    assert found.tolist() == [5, 1, 2, 0, 3, 4, 1, 2, 0, 4, 5, 3]

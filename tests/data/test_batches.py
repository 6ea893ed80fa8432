"""A batch is the same whoever asks, of one store or of several, in both packings."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmx.core.errors import UserError
from lmx.core.schema import DataConfig
from lmx.data import store
from lmx.data.batches import Batches
from lmx.data.recipe import plan
from lmx.data.rows import Rows
from lmx.data.store import TokenStore
from lmx.inputs.batch import Batch
from lmx.inputs.tokenizers import train_tokenizer

LENGTH = 16
PACKINGS = ["concat", "document", "best_fit"]


def _text(number: int) -> str:
    return f"Document {number} says {number * number} and größer 🙂.\n" * (
        1 + number % 4
    )


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> dict[str, TokenStore]:
    directory = tmp_path_factory.mktemp("stores")
    tokenizer = train_tokenizer("byte", [], 259)
    for name, numbers in (("a", range(9)), ("b", range(20, 24)), ("c", range(0))):
        store.write_store(directory / name, map(_text, numbers), tokenizer)
    return {name: TokenStore.open(directory / name) for name in "abc"}


def _batches(stores: dict[str, TokenStore], **options) -> Batches:
    prefetch, workers = options.pop("prefetch", 2), options.pop("workers", 1)
    config = DataConfig(**({"batch_size": 4} | options))
    rows = Rows(stores, context_length=LENGTH, packing=config.packing)
    return Batches(
        rows,
        plan(config, rows.counts, seed=5, steps=100),
        batch_size=config.batch_size,
        prefetch=prefetch,
        workers=workers,
    )


def _equal(left: Batch, right: Batch) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def _joined(parts: list[Batch]) -> Batch:
    return Batch(*(np.concatenate(fields) for fields in zip(*parts, strict=True)))


@settings(deadline=None, max_examples=15)
@given(
    start=st.integers(0, 400),
    count=st.integers(0, 6),
    prefetch=st.integers(0, 3),
    workers=st.integers(1, 3),
    packing=st.sampled_from(PACKINGS),
)
def test_iterating_from_any_start_gives_the_batches_of_those_steps(
    stores, start, count, prefetch, workers, packing
):
    batches = _batches(stores, prefetch=prefetch, workers=workers, packing=packing)
    found = list(batches.iterate(start, start + count))
    assert len(found) == count
    for offset, batch in enumerate(found):
        assert isinstance(batch, Batch)
        assert _equal(batch, batches.at(start + offset))


@settings(deadline=None)
@given(step=st.integers(0, 10**6), packing=st.sampled_from(PACKINGS))
def test_a_run_on_8_then_4_then_16_hosts_sees_the_same_batches(stores, step, packing):
    batches = _batches(stores, batch_size=16, packing=packing, mixture=("a=2 b=1",))
    for number, hosts in enumerate((8, 4, 16)):
        share = 16 // hosts
        parts = [
            batches.rows_at(step + number, host * share, (host + 1) * share)
            for host in range(hosts)
        ]
        assert _equal(_joined(parts), batches.at(step + number))


def test_hosts_iterate_over_their_shares(stores):
    batches = _batches(stores)
    for step, batch in enumerate(batches.iterate(0, 3, rows=(1, 3))):
        assert _equal(batch, batches.rows_at(step, 1, 3))


@pytest.mark.parametrize("packing", PACKINGS)
def test_rows_of_several_stores_are_the_rows_of_each(stores, packing):
    rows = Rows(stores, context_length=LENGTH, packing=packing)
    ids = np.random.default_rng(0).permutation(len(rows))
    ids = np.append(ids, -1)
    found, sources = rows.batch(ids), rows.source_of(ids)
    first = np.cumsum([0, *rows.counts.values()])
    for place, (row, source) in enumerate(zip(ids, sources, strict=True)):
        if row < 0:
            assert not any(field[place].any() for field in found)
            continue
        one = {"one": stores[rows.names[source]]}
        alone = Rows(one, context_length=LENGTH, packing=packing)
        expected = alone.batch(np.array([row - first[source]]))
        assert _equal(Batch(*(field[place : place + 1] for field in found)), expected)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("shuffle", ["epoch", "none"])
def test_an_epoch_trains_on_every_target_once(stores, packing, shuffle):
    # As many steps as rows: that is batch_size epochs, whole ones.
    batches = _batches(stores, packing=packing, shuffle=shuffle)
    steps = range(len(batches.rows))
    weight = sum(batches.at(step).loss_weights.sum() for step in steps)
    targets = sum(store.num_targets for store in stores.values())
    assert weight == batches.batch_size * targets


@pytest.mark.parametrize("packing", PACKINGS)
def test_in_order_every_target_comes_once_in_full_batches(stores, packing):
    rows = Rows(stores, context_length=LENGTH, packing=packing)
    found = [rows.batch(ids) for ids in rows.ids_in_order(7)]
    assert {batch.tokens.shape for batch in found} == {(7, LENGTH)}
    targets = np.concatenate([b.targets[b.loss_weights > 0] for b in found])
    expected = [np.delete(s.tokens, s.offsets[:-1]) for s in stores.values()]
    expected = np.concatenate(expected)
    if packing == "best_fit":  # whole documents, in an order of their lengths
        targets, expected = np.sort(targets), np.sort(expected)
    assert np.array_equal(targets, expected)


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_mixture_has_its_shares_in_the_batches(stores, packing):
    batches = _batches(stores, packing=packing, mixture=("a=3 b=1", "50: b=1"))
    for step, expected in ((0, [0, 0, 0, 1]), (49, [0, 0, 0, 1]), (50, [1, 1, 1, 1])):
        ids = batches.ids_at(step, 0, 4)
        assert sorted(batches.rows.source_of(ids)) == expected


def test_an_error_in_a_worker_surfaces_with_its_message(stores):
    batches = _batches(stores)

    def fail(*_, **__):
        raise RuntimeError("the disk went away")

    batches.rows.batch = fail  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="the disk went away"):
        next(batches.iterate(0, 3))


def test_closing_ends_the_threads(stores):
    before = set(threading.enumerate())
    iterator = _batches(stores, workers=2).iterate(0, 1000)
    next(iterator)
    started = set(threading.enumerate()) - before
    assert started
    iterator.close()
    for thread in started:  # told to end, they finish the batch they are at
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    ("option", "value"), [("batch_size", 0), ("prefetch", -1), ("workers", 0)]
)
def test_values_out_of_range_are_named(stores, option, value):
    with pytest.raises(UserError, match=f"data.{option}"):
        _batches(stores, **{option: value})


def test_wrong_names_are_reported_when_made(stores):
    with pytest.raises(UserError, match="did you mean 'epoch'"):
        _batches(stores, shuffle="epochs")
    with pytest.raises(UserError, match="unknown packing"):
        _batches(stores, packing="none")

"""Rows that are cut to a length are rows that were so long from the first."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given
from hypothesis import strategies as st

from lmx.core.errors import UserError
from lmx.core.model_schema import ModelConfig
from lmx.core.schema import DataConfig, ObjectiveConfig
from lmx.data import store
from lmx.data.batches import Batches
from lmx.data.recipe import plan
from lmx.data.rows import Rows
from lmx.data.stages import RowLengths
from lmx.data.store import TokenStore
from lmx.inputs.batch import Batch
from lmx.inputs.tokenizers import train_tokenizer
from lmx.models.decoder import Decoder
from lmx.models.sizes import resolve
from lmx.training.objective import NextToken
from lmx.training.step import summed_gradient

LENGTH = 24
TEXTS = {
    "a": [f"Document {n} says {n * n}.\n" * (1 + n % 4) for n in range(9)],
    "b": ["größer 🙂" * n for n in range(1, 6)],
}
ENTRIES = ("6", "25%: 12", "60%: 24")


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> dict[str, TokenStore]:
    directory = tmp_path_factory.mktemp("stores")
    tokenizer = train_tokenizer("byte", [], 259)
    for name, texts in TEXTS.items():
        store.write_store(directory / name, texts, tokenizer)
    return {name: TokenStore.open(directory / name) for name in TEXTS}


def lengths(*entries: str, steps: int = 20, **options) -> RowLengths:
    config = DataConfig(row_lengths=entries, **options)
    return RowLengths(config, context_length=LENGTH, steps=steps)


def batches(stores: dict[str, TokenStore], *entries: str) -> Batches:
    rows = Rows(stores, context_length=LENGTH, packing="concat")
    config = DataConfig(batch_size=8, mixture=("a=2 b=1",))
    return Batches(
        rows,
        plan(config, rows.counts, seed=1, steps=20),
        batch_size=8,
        prefetch=0,
        workers=1,
        lengths=lengths(*entries),
    )


def equal(left: Batch, right: Batch) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("length", [1, 4, 8, 12, 24])
def test_a_cut_row_is_the_rows_of_a_packer_of_that_length(stores, length):
    whole = Rows(stores, context_length=LENGTH, packing="concat")
    short = Rows(stores, context_length=length, packing="concat")
    ids = np.append(np.random.default_rng(0).permutation(len(whole)), -1)
    found = whole.batch(ids, length=length)
    pieces = LENGTH // length
    expected = []
    for row, source in zip(ids, whole.source_of(ids), strict=True):
        name = whole.names[source]
        before = [sum(rows.counts[n] for n in "ab"[:source]) for rows in (whole, short)]
        first = (row - before[0]) * pieces
        inside = [row >= 0 and first + n < short.counts[name] for n in range(pieces)]
        expected += [before[1] + first + n if inside[n] else -1 for n in range(pieces)]
    assert equal(found, short.batch(np.array(expected)))


@given(step=st.integers(0, 19))
def test_steps_have_the_targets_in_the_order_that_they_have_uncut(stores, step):
    cut, whole = (batches(stores, *entries).at(step) for entries in (ENTRIES, ()))
    length = lengths(*ENTRIES).at(step)
    assert cut.tokens.shape == (8 * LENGTH // length, length)
    for name in ("targets", "loss_weights"):
        found, expected = (getattr(batch, name) for batch in (cut, whole))
        assert np.array_equal(found.ravel(), expected.ravel())
    assert (cut.positions < length).all()


@pytest.mark.parametrize("step", [0, 5, 13])
def test_every_host_cuts_its_own_rows(stores, step):
    made = batches(stores, *ENTRIES)
    for hosts in (8, 4, 2):
        share = 8 // hosts
        parts = [made.rows_at(step, h * share, (h + 1) * share) for h in range(hosts)]
        joined = Batch(*map(np.concatenate, zip(*parts, strict=True)))
        assert equal(joined, made.at(step))


def test_loss_and_gradient_are_those_of_whole_rows_whose_segments_end_there(stores):
    """The reference never cuts: a token of it just cannot see past a piece."""
    config = ModelConfig(
        width=16, num_layers=1, num_heads=2, context_length=LENGTH, positions="learned"
    )
    model = resolve(config, vocab_size=259)
    objective = NextToken(model, ObjectiveConfig())
    rows = Rows(stores, context_length=LENGTH, packing="concat")
    ids = np.array([0, 3, len(rows) - 1])
    whole, cut = rows.batch(ids), rows.batch(ids, length=8)
    place = np.arange(LENGTH) // 8 * LENGTH
    whole = whole._replace(
        segment_ids=np.where(whole.segment_ids, whole.segment_ids + place, 0),
        positions=cut.positions.reshape(whole.positions.shape),
    )
    params = Decoder(model).init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))
    params = nn.meta.unbox(params["params"])
    gradient = jax.jit(lambda batch: summed_gradient(objective, params, batch))
    (found, sums), (expected, totals) = gradient(cut), gradient(whole)
    assert sums["weight"] == totals["weight"]
    np.testing.assert_allclose(sums["loss"], totals["loss"], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), found, expected
    )


def test_entries_hold_from_their_step_on():
    found = lengths(*ENTRIES)
    assert [found.at(step) for step in (0, 4, 5, 11, 12, 19)] == [6, 6, 12, 12, 24, 24]
    assert lengths("3: 24").stages == [(0, 24), (3, 24)]
    assert {lengths().at(step) for step in range(20)} == {24}
    assert lengths("12", " 10 : 24").at(9) == 12


@pytest.mark.parametrize(
    ("entries", "options", "message"),
    [
        (("5", "50%: 24"), {}, "cannot be cut into pieces of 5; take a number that"),
        (("0", "50%: 24"), {}, "cannot be cut into pieces of 0"),
        (("48",), {}, "cannot be cut into pieces of 48"),
        (("1.5", "50%: 24"), {}, "cannot be cut into pieces of 1.5"),
        (("short",), {}, "must be a number of 0 or more; write it as in"),
        (("12",), {}, "ends with '12', and model.context_length is 24: a model that"),
        (("12", "20: 24"), {}, "'20: 24', which never comes: there are 20 steps"),
        (("50%: 12", "25%: 24"), {}, r"start at steps \[10, 5\]; put them in order"),
        (("12", "9: 24"), {"packing": "best_fit"}, "set data.packing='concat'"),
        (("12", "9: 24"), {"packing": "document"}, "set data.packing='concat'"),
    ],
)
def test_what_rows_cannot_be_cut_to_is_refused(entries, options, message):
    with pytest.raises(UserError, match=message):
        lengths(*entries, **options)


@given(st.lists(st.text(max_size=12), max_size=3))
def test_any_texts_are_lengths_or_a_user_error(texts):
    try:
        found = lengths(*texts)
    except UserError:
        return
    assert found.at(19) == LENGTH

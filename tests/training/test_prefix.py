"""Prompts that are read in both directions, and targets that nobody sees too early."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmx.core.errors import UserError
from lmx.core.model_schema import ModelConfig
from lmx.core.schema import ObjectiveConfig
from lmx.core.trees import flatten_with_names
from lmx.inputs.batch import Batch
from lmx.models.block import MIXERS
from lmx.models.decoder import Decoder, abstract_params
from lmx.models.sizes import resolve
from lmx.training.objective import NextToken, prompts
from lmx.training.step import summed_gradient

LENGTH, VOCAB = 12, 24
QUICKLY = {"xla_backend_optimization_level": 0}
PATTERN = tuple(mixer for mixer in MIXERS if mixer != "window")


def make(**changes):
    """Returns a tiny resolved config and random parameters for it."""
    shape = {"vocab_size": VOCAB, "context_length": LENGTH, "width": 8, "mlp_dim": 8}
    shape |= {"num_heads": 4, "num_kv_heads": 2, "head_dim": 4, "num_layers": 2}
    shape |= {"compute_dtype": "float32", "rope_dim": 2, "kv_latent_dim": 3}
    config = resolve(ModelConfig(**{**shape, "attention": "prefix", **changes}))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jnp.asarray(0.5 * rng.standard_normal(x.shape, np.float32)),
        nn.meta.unbox(abstract_params(config)),
    )
    return config, params


def batch_of(rows):
    """Returns a batch of rows of documents, each a list of weights; then padding."""
    rng = np.random.default_rng(1)
    ints = rng.integers(0, VOCAB, (2, len(rows), LENGTH)).astype(np.int32)
    weights = np.zeros((len(rows), LENGTH), np.float32)
    segments, positions = (np.zeros((len(rows), LENGTH), np.int32) for _ in range(2))
    for row, documents in enumerate(rows):
        start = 0
        for number, document in enumerate(documents, start=1):
            own = slice(start, start + len(document))
            weights[row, own], segments[row, own] = document, number
            positions[row, own] = np.arange(len(document))
            start += len(document)
    return Batch(*ints, weights, segments, positions)


def prompt_lengths(document):
    """The reference: tokens up to the one that predicts the first with a loss."""
    for place, weight in enumerate(document):
        if weight > 0:
            return place + 1
    return len(document)


DOCUMENT = st.lists(st.sampled_from([0, 0, 0.5, 1]), min_size=1, max_size=6)


@settings(deadline=None, max_examples=100)
@given(rows=st.lists(st.lists(DOCUMENT, max_size=2), min_size=1, max_size=3))
def test_a_prompt_is_what_comes_before_the_first_target_with_a_loss(rows):
    found = np.asarray(prompts(batch_of(rows)))
    for row, documents in zip(found, rows, strict=True):
        expected = []
        for document in documents:
            length = prompt_lengths(document)
            expected += [True] * length + [False] * (len(document) - length)
        assert row.tolist() == expected + [False] * (LENGTH - len(expected))


# Two prompts, one with a turn between its replies; one text without a masked token.
ROWS = [
    [[0, 0, 0, 1, 1], [0, 0, 1, 0, 0, 1, 1]],
    [[1, 1, 1, 1], [0, 0, 0, 0, 1], [0, 0]],
]


@pytest.mark.parametrize(
    ("mixer", "positions"), [*((m, "rope") for m in PATTERN), ("attention", "alibi")]
)
def test_targets_have_gradients_of_what_they_may_see_and_of_no_other(mixer, positions):
    config, params = make(pattern=(mixer,), positions=positions, head="untied")
    batch = batch_of(ROWS)
    B = len(ROWS)
    places = np.arange(B * LENGTH, dtype=np.int32).reshape(B, LENGTH)
    batch = batch._replace(tokens=places)  # row t of the table is that of place t
    rng = np.random.default_rng(3)
    table = jnp.asarray(rng.standard_normal((B * LENGTH, 8), np.float32))
    objective = NextToken(config, ObjectiveConfig())

    def values(table):
        return objective({**params, "embedding": table}, batch).values

    run = jax.jit(jax.jacrev(values)).lower(table)
    jacobian = run.compile(compiler_options=QUICKLY)(table)
    reached = np.asarray(jnp.abs(jacobian).sum(-1) > 0).reshape(B, LENGTH, B, LENGTH)
    for row, documents in enumerate(ROWS):
        start = 0
        for document in documents:
            length = prompt_lengths(document)
            for i in range(len(document)):
                seen = max(i + 1, length)
                expected = np.zeros((B, LENGTH), bool)
                expected[row, start : start + seen] = True
                # No target that is learned is seen before it is said.
                assert document[i] == 0 or seen == i + 1
                np.testing.assert_array_equal(reached[row, start + i], expected)
            start += len(document)


def test_packed_losses_and_gradients_are_the_sums_of_unpacked_ones():
    config, params = make(num_layers=1)
    objective = NextToken(config, ObjectiveConfig(z_loss=1e-3))
    packed, alone = batch_of(ROWS), []
    for row in range(len(ROWS)):
        for number in range(1, packed.segment_ids[row].max() + 1):
            own = packed.segment_ids[row] == number
            fields = [np.zeros_like(field[:1]) for field in packed]
            for field, whole in zip(fields, packed, strict=True):
                field[0, : own.sum()] = whole[row, own]
            alone.append(Batch(*fields))
            alone[-1].segment_ids[0, : own.sum()] = 1
    together = Batch(*(np.concatenate(fields) for fields in zip(*alone, strict=True)))

    def gradient(batch, pieces=1):
        run = jax.jit(lambda p, b: summed_gradient(objective, p, b, pieces=pieces))
        return run.lower(params, batch).compile(compiler_options=QUICKLY)(params, batch)

    grads, sums = gradient(packed)
    for other in (gradient(packed, pieces=2), gradient(together)):
        for name, value in sums.items():
            np.testing.assert_allclose(other[1][name], value, rtol=1e-5)
        for (name, grad), (_, total) in zip(
            flatten_with_names(grads), flatten_with_names(other[0]), strict=True
        ):
            error = np.linalg.norm(grad - total) / max(np.linalg.norm(total), 1e-3)
            assert error <= 1e-5, name


def test_a_text_without_a_masked_token_is_read_as_causal_models_do():
    config, params = make()
    causal, _ = make(attention="causal")
    batch = batch_of([[[1, 1, 1, 1, 1], [1, 1, 1, 0]], [[1] * LENGTH]])

    def values(config):
        run = jax.jit(NextToken(config, ObjectiveConfig())).lower(params, batch)
        return run.compile(compiler_options=QUICKLY)(params, batch).values

    found, expected = values(config), values(causal)
    np.testing.assert_array_equal(found, expected)


def test_window_layers_are_refused():
    with pytest.raises(UserError, match=r"attention='prefix'.*'window'"):
        make(pattern=("attention", "window"), window=4)


def test_a_decoder_of_another_attention_takes_no_prefix():
    config, params = make(attention="causal")
    tokens = np.zeros((1, 3), np.int32)
    with pytest.raises(AssertionError, match="causal"):
        Decoder(config).apply({"params": params}, tokens, prefix=tokens == 0)

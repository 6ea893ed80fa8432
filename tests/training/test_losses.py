"""Cross-entropy in pieces against plain log-softmax, NumPy and JAX, in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.core.errors import UserError
from lmx.training.losses import CHUNK, cross_entropy

TOKENS, WIDTH, VOCAB = 24, 8, 48
SOFTCAPS = (None, 3.0)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(TOKENS, WIDTH)).astype(np.float32)
    head = rng.normal(size=(VOCAB, WIDTH)).astype(np.float32)
    # Every entry is a target once, the first and the last of each piece included.
    targets = np.arange(TOKENS, dtype=np.int32) * 2 + np.arange(TOKENS) % 2
    return hidden, head, targets.astype(np.int32)


def plain(hidden, head, targets, softcap, xp=np):
    """Returns −log p(target) and log Z as one writes them down."""
    logits = hidden @ head.T
    if softcap is not None:
        logits = softcap * xp.tanh(logits / softcap)
    peak = logits.max(axis=-1, keepdims=True)
    log_z = peak[:, 0] + xp.log(xp.exp(logits - peak).sum(axis=-1))
    return log_z - logits[xp.arange(len(targets)), targets], log_z


@pytest.mark.parametrize("softcap", SOFTCAPS)
@pytest.mark.parametrize("chunks", [1, 2, 4, None])
def test_losses_are_those_of_log_softmax_in_float64(data, chunks, softcap):
    hidden, head, targets = data
    expected = plain(hidden.astype(np.float64), head, targets, softcap)
    found = cross_entropy(hidden, head, targets, chunks=chunks, softcap=softcap)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6)


def test_the_number_of_chunks_changes_nothing(data):
    losses = [cross_entropy(*data, chunks=chunks)[0] for chunks in (1, 2, 4)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(losses[2], losses[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("softcap", SOFTCAPS)
@pytest.mark.parametrize("chunks", [1, 4])
def test_gradients_with_z_loss_are_those_of_a_plain_float64_loss(data, chunks, softcap):
    hidden, head, targets = data
    weights = np.linspace(0, 1, TOKENS)

    def total(losses):
        nll, log_z = losses
        return ((nll + 0.1 * log_z**2) * weights.astype(nll.dtype)).sum()

    def ours(hidden, head):
        return total(
            cross_entropy(hidden, head, targets, chunks=chunks, softcap=softcap)
        )

    found = jax.jit(jax.grad(ours, argnums=(0, 1)))(hidden, head)
    with jax.enable_x64(True):
        expected = jax.grad(
            lambda hidden, head: total(plain(hidden, head, targets, softcap, jnp)),
            argnums=(0, 1),
        )(jnp.asarray(hidden, jnp.float64), jnp.asarray(head, jnp.float64))
        expected = jax.device_get(expected)
    for a, b in zip(found, expected, strict=True):
        assert b.dtype == np.float64
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_the_gradient_of_log_z_alone_is_the_softmax(data):
    hidden, head, targets = data
    found = jax.grad(lambda h: cross_entropy(h, head, targets, chunks=2)[1].sum())(
        hidden
    )
    logits = hidden.astype(np.float64) @ head.T
    softmax = np.exp(logits - logits.max(-1, keepdims=True))
    softmax /= softmax.sum(-1, keepdims=True)
    np.testing.assert_allclose(found, softmax @ head, rtol=1e-5, atol=1e-6)


def test_gradients_keep_the_dtypes_of_what_they_are_of(data):
    hidden, head, targets = data
    grads = jax.grad(
        lambda h, w: cross_entropy(h, w, targets, chunks=2)[0].sum(), argnums=(0, 1)
    )(jnp.asarray(hidden, jnp.bfloat16), jnp.asarray(head))
    assert [g.dtype for g in grads] == [jnp.bfloat16, jnp.float32]


@pytest.mark.parametrize("chunks", [1, 2])
@pytest.mark.parametrize("softcap", SOFTCAPS)
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_logits_give_finite_losses_and_gradients(chunks, softcap, size):
    hidden = np.full((2, 1), size, np.float32)
    head = np.array([[1.0], [-1.0], [0.5], [1.0]], np.float32)
    targets = np.array([0, 1], np.int32)

    def loss(hidden, head):
        nll, log_z = cross_entropy(
            hidden, head, targets, chunks=chunks, softcap=softcap
        )
        return nll.sum() + 1e-4 * jnp.square(log_z).sum(), nll

    grads, nll = jax.grad(loss, argnums=(0, 1), has_aux=True)(hidden, head)
    assert all(np.isfinite(x).all() for x in (nll, *grads))
    expected, _ = plain(hidden.astype(np.float64), head, targets, softcap)
    np.testing.assert_allclose(nll, expected, rtol=1e-5, atol=1e-5)


def largest_array(jaxpr):
    """Returns the most elements of any value computed in `jaxpr`, loops included."""
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [v.aval.size for v in equation.outvars if hasattr(v.aval, "size")]
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                sizes.append(largest_array(inner))
    return max(sizes)


@pytest.mark.parametrize("chunks", [2, 4])
def test_whole_logits_never_exist_when_there_are_chunks(data, chunks):
    tokens, vocab = 512, 64  # T·V is larger than all else: T·D and V·D
    hidden, head = np.ones((tokens, WIDTH)), np.ones((vocab, WIDTH))
    targets = np.zeros(tokens, np.int32)

    def gradient(chunks):
        def loss(hidden, head):
            nll, log_z = cross_entropy(hidden, head, targets, chunks=chunks)
            return (nll + log_z).sum()

        return jax.grad(loss, argnums=(0, 1))

    args = hidden.astype(np.float32), head.astype(np.float32)
    assert largest_array(jax.make_jaxpr(gradient(1))(*args).jaxpr) == tokens * vocab
    largest = largest_array(jax.make_jaxpr(gradient(chunks))(*args).jaxpr)
    assert largest == tokens * vocab // chunks
    compiled = jax.jit(gradient(chunks)).lower(*args).compile().as_text()
    assert f"[{tokens},{vocab // chunks}]" in compiled
    assert f"[{tokens},{vocab}]" not in compiled
    assert f"[{vocab},{tokens}]" not in compiled


@pytest.mark.parametrize("vocab", [50_257, 50_304, 128_256, 4096, 3 * CHUNK])
def test_pieces_are_moderate_for_vocabularies_of_published_models(vocab):
    jaxpr = jax.make_jaxpr(lambda h, w, t: cross_entropy(h, w, t))(
        jax.ShapeDtypeStruct((512, 1), jnp.float32),
        jax.ShapeDtypeStruct((vocab, 1), jnp.float32),
        jax.ShapeDtypeStruct((512,), jnp.int32),
    )
    assert largest_array(jaxpr.jaxpr) <= 512 * CHUNK


def test_chunks_that_do_not_divide_the_vocabulary_name_the_nearest(data):
    with pytest.raises(UserError, match=r"vocab_chunks=5 .* 48; nearest .*: (4|6)"):
        cross_entropy(*data, chunks=5)


@pytest.mark.parametrize("chunks", [0, -2])
def test_chunks_are_at_least_one(data, chunks):
    with pytest.raises(UserError, match=f"vocab_chunks={chunks} "):
        cross_entropy(*data, chunks=chunks)

"""Mixtures of experts: grouped products, capacity, balance. Values of whole models are
compared with an independent one in test_attention_parity.py.
"""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.core.model_schema import ModelConfig
from lmx.models.attention import Context
from lmx.models.grouped import grouped_matmul
from lmx.models.moe import MoE, route
from lmx.models.positions import documents
from lmx.models.sizes import resolve

B, L, D, E, K = 2, 9, 8, 4, 2
TOLERANCE = {"float32": 2e-5, "bfloat16": 3e-2}


@pytest.mark.parametrize("form", ["xla", "cpu"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "sizes", [(5,), (0, 3, 0), (1, 1, 1, 1), (7, 0, 300, 2), (0, 0, 1)], ids=str
)
def test_grouped_products_and_their_gradients_equal_numpy(form, dtype, sizes):
    rng, rows = np.random.default_rng(0), sum(sizes)
    x = jnp.asarray(rng.normal(size=(rows, 6)), dtype)
    w = jnp.asarray(rng.normal(size=(len(sizes), 6, 5)), dtype)
    dy = jnp.asarray(rng.normal(size=(rows, 5)), jnp.float32)

    @jax.jit
    def run(x, w, dy, sizes):
        multiply = partial(
            grouped_matmul, sizes_E=sizes, form=form, out_dtype=jnp.float32
        )
        y, back = jax.vjp(multiply, x, w)
        return y, *back(dy)

    got = run(x, w, dy, jnp.asarray(sizes, jnp.int32))
    x, w, dy = (np.asarray(a, np.float64) for a in (x, w, dy))
    group = np.repeat(np.arange(len(sizes)), sizes)
    y = np.einsum("ri,rio->ro", x, w[group])
    dx = np.einsum("ro,rio->ri", dy, w[group])
    dw = np.zeros_like(w)
    np.add.at(dw, group, np.einsum("ri,ro->rio", x, dy))
    for found, expected in zip(got, (y, dx, dw), strict=True):
        error = np.abs(np.asarray(found, np.float64) - expected).max()
        assert error <= TOLERANCE[dtype] * np.abs(expected).max()


def make(**changes):
    """Returns a config, its layer of experts and random parameters."""
    options = {"ffns": ("moe",), "num_experts": E, "experts_per_token": K}
    shape = {"vocab_size": 9, "width": D, "num_layers": 1, "num_heads": 2, "mlp_dim": 6}
    config = resolve(
        ModelConfig(**{**shape, **options, "compute_dtype": "float32", **changes})
    )
    layer, x = MoE(config), jnp.zeros((B, L, D))
    boxed = jax.eval_shape(layer.init, jax.random.key(0), x, context())["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32),
        nn.meta.unbox(boxed),
    )
    return config, layer, params


def context(segments=None):
    return Context(jnp.zeros((B, L), jnp.int32), segments, {})


def inputs(seed=1):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(B, L, D)), jnp.float32)


@pytest.mark.parametrize("biases", ["none", "all"])
def test_room_for_all_tokens_drops_none(biases):
    _, free, params = make(shared_experts=1, biases=biases)
    _, full, _ = make(shared_experts=1, biases=biases, expert_capacity=E / K)

    def run(layer, params, x):
        return layer.apply({"params": params}, x, context())[0]

    x, probe = inputs(), inputs(2)
    results = [
        jax.value_and_grad(lambda p, x, f=f: jnp.sum(run(f, p, x) * probe), (0, 1))(
            params, x
        )
        for f in (free, full)
    ]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), *results
    )


def test_a_full_expert_serves_the_first_tokens_of_a_row_and_no_padding():
    config, layer, params = make(expert_capacity=0.5)
    segments = jnp.asarray([[1] * 6 + [0] * 3, [0] + [1] * 8])
    x = inputs()
    out, _ = layer.apply({"params": params}, x, context(segments))
    logits = np.asarray(x @ params["router"]["kernel"])
    weights, chosen, _ = (np.asarray(a) for a in route(config, jnp.asarray(logits)))
    room = int(np.ceil(0.5 * L * K / E))
    expected = np.zeros((B, L, D))
    for b in range(B):
        served = np.zeros(E, int)
        for t in range(L):
            for weight, e in zip(weights[b, t], chosen[b, t], strict=True):
                if segments[b, t] == 0:
                    continue
                served[e] += 1
                if served[e] <= room:
                    gate, up, down = (
                        params[f"experts_{name}"]["kernel"][e]
                        for name in ("gate", "up", "down")
                    )
                    hidden = jax.nn.silu(x[b, t] @ gate) * (x[b, t] @ up)
                    expected[b, t] += weight * (hidden @ down)
    assert served.max() > room
    np.testing.assert_allclose(out, expected, rtol=1e-3, atol=1e-3)


def test_balance_is_one_when_even_and_counts_documents_apart():
    _, layer, params = make(experts_per_token=1)
    even = {**params, "router": {"kernel": jnp.zeros((D, E))}}
    _, losses = layer.apply({"params": even}, inputs(), context())
    # All scores equal: every token goes to the first, and p is the same for all.
    np.testing.assert_allclose(losses.balance, 1, rtol=1e-6)
    np.testing.assert_allclose(losses.z, np.log(E) ** 2, rtol=1e-6)

    segments = jnp.asarray([[1] * 4 + [2] * 5, [1] * 7 + [0] * 2])
    x = inputs()
    _, losses = layer.apply({"params": params}, x, context(segments))
    logits = np.asarray(x @ params["router"]["kernel"], np.float64)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    for row, document in ((0, slice(0, 4)), (0, slice(4, 9)), (1, slice(0, 7))):
        own = p[row, document]
        f = np.bincount(own.argmax(-1), minlength=E) / len(own)
        np.testing.assert_allclose(
            np.mean(losses.balance[row, document]), E * f @ own.mean(0), rtol=1e-4
        )


def test_a_bias_to_choose_by_changes_the_choice_and_not_the_weights():
    config, *_ = make(router="sigmoid", experts_per_token=1)
    logits = jnp.asarray([[[0.0, 1.0, 2.0, 0.5]]])
    weights, chosen, _ = route(config, logits, jnp.asarray([9.0, 0, 0, 0]))
    assert chosen.tolist() == [[[0]]]
    np.testing.assert_allclose(weights, 0.5)


def test_documents_begin_and_end_where_segments_change():
    segments = jnp.asarray([[1, 1, 2, 2, 2, 0], [3, 1, 1, 0, 0, 0]])
    first, last = documents(segments, (2, 6))
    assert first.tolist() == [[0, 0, 2, 2, 2, 5], [0, 1, 1, 3, 3, 3]]
    assert last.tolist() == [[1, 1, 4, 4, 4, 5], [0, 2, 2, 5, 5, 5]]

"""Weights of few bits: their rounding, their product and what a model loses by them."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.core.errors import UserError
from lmx.core.model_schema import ModelConfig
from lmx.generate import weights
from lmx.generate.decode import Generator
from lmx.generate.sampling import SamplingConfig
from lmx.models.decoder import Decoder, head_logits
from lmx.models.prepared import prepare, product
from lmx.models.sizes import resolve

PATTERN = ("window", "attention")


def tiny(**changes):
    shape = {
        "width": 64,
        "num_layers": 3,
        "num_heads": 4,
        "num_kv_heads": 2,
        "vocab_size": 101,
        "context_length": 32,
        "compute_dtype": "float32",
        "window": 6,
    }
    return resolve(ModelConfig(**{**shape, **changes}))


def build(config):
    tokens = jnp.zeros((1, 4), jnp.int32)
    boxed = Decoder(config).init(jax.random.key(0), tokens)["params"]
    return jax.tree.map(lambda x: 4 * x, nn.meta.unbox(boxed))


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_int8_products_equal_those_of_rounded_weights_in_float64(rows):
    rng = np.random.default_rng(rows)
    x, kernel = rng.normal(0, 2, (rows, 48)), rng.normal(0, 1, (48, 33))
    kernel[:, 7], x[0, 5] = 0, 300  # a dead output; an activation above all others
    x, kernel = x.astype(np.float32), kernel.astype(np.float32)
    unit_O = np.abs(kernel).max(axis=0) / 127
    steps_IO = np.rint(kernel / np.where(unit_O > 0, unit_O, 1))
    prepared = prepare(jnp.asarray(kernel), dtype="int8", form="cpu")
    assert prepared.weight_OI.dtype == jnp.int8
    np.testing.assert_array_equal(prepared.weight_OI, steps_IO.T)
    expected = x.astype(np.float64) @ (steps_IO * unit_O.astype(np.float64))
    for form, loss in (("cpu", 2**-15), ("xla", 2**-23)):
        got = jax.jit(product, static_argnames="form")(
            jnp.asarray(x), prepared, form=form
        )
        # Each of the 48 activations is off by at most this share of the largest.
        bound = loss * 48 * np.abs(x).max(axis=1, keepdims=True) * np.abs(kernel).max()
        assert (np.abs(got - expected) <= bound).all()


@pytest.mark.parametrize("form", ["xla", "cpu"])
def test_int4_weights_are_within_half_a_step_of_their_group(form):
    rng = np.random.default_rng(4)
    kernel = rng.normal(0.3, 1, (96, 21)).astype(np.float32)
    kernel[32:64, 3] = 0.25  # a group of one value
    groups = kernel.reshape(3, 32, 21)
    step = (groups.max(axis=1) - groups.min(axis=1)) / 15
    prepared = prepare(jnp.asarray(kernel), dtype="int4", form=form)
    if form == "xla":
        assert prepared.weight_OI.dtype == jnp.int4
    got = np.asarray(product(jnp.eye(96), prepared, form=form)).reshape(3, 32, 21)
    # On CPU half an int8 unit of the output is added.
    unit = np.abs(kernel).max(axis=0) / 127
    bound = 0.5 * step[:, None] + (0.5 * unit if form == "cpu" else 0)
    assert (np.abs(got - groups) <= bound + 1e-4).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_prepared_kernel_is_the_same_kernel(dtype, rows):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(0, 1, (rows, 2, 48)), dtype)
    kernel = jnp.asarray(rng.normal(0, 1, (48, 33)), dtype)
    expected = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
    for form in ("cpu", "xla"):
        prepared = prepare(kernel, dtype=dtype, form=form)
        got = product(x, prepared, form=form)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("layer_loop", ["scan", "auto"])
@pytest.mark.parametrize("form", ["cpu", "xla"])
@pytest.mark.parametrize(("kind", "most"), [("int8", 0.02), ("int4", 0.5)])
def test_a_model_of_few_bits_is_nearly_the_same_model(layer_loop, form, kind, most):
    head = "tied" if form == "cpu" else "untied"
    config = tiny(
        layer_loop=layer_loop, kernels=form, head=head, pattern=PATTERN, biases="all"
    )
    params = build(config)
    tokens = np.random.default_rng(1).integers(0, 101, (4, 32)).astype(np.int32)
    fast, packed = weights.for_decoding(config, params, quantize=kind)
    hidden = jax.jit(Decoder(fast).apply)({"params": packed}, tokens)
    got = jax.nn.log_softmax(weights.decoding_logits(fast, packed, hidden))
    hidden = jax.jit(Decoder(config).apply)({"params": params}, tokens)
    expected = jax.nn.log_softmax(head_logits(config, params, hidden))
    divergence = (jnp.exp(expected) * (expected - got)).sum(-1).mean()
    entropy = -(jnp.exp(expected) * expected).sum(-1).mean()
    assert 0 < divergence < most * entropy


def test_int8_weights_take_a_quarter_of_the_memory_and_write_text():
    config = tiny(width=128, num_heads=4, mlp_dim=512)
    params = build(config)
    whole = Generator(config, params, eos_ids=())
    small = Generator(config, params, eos_ids=(), quantize="int8")

    def size(generator):
        leaves = jax.tree_util.tree_leaves_with_path(generator.params)
        return sum(x.nbytes for path, x in leaves if "weight_OI" in str(path))

    assert size(small) == size(whole) / 4
    sampling = SamplingConfig(temperature=0, max_new_tokens=8)
    together = small.generate([[1, 2, 3], [4]], sampling)
    assert [x.tokens for x in together] == [
        small.generate([prompt], sampling)[0].tokens for prompt in ([1, 2, 3], [4])
    ]


def test_an_unknown_kind_names_the_known_ones():
    with pytest.raises(UserError, match=r"quantize.*'int7'|'int7'.*quantize"):
        weights.for_decoding(tiny(), build(tiny()), quantize="int7")

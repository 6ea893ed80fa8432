"""Adapters compute, and are differentiated, as the merged weights would be.

The reference is automatic differentiation of the model without adapters, through
weights that NumPy-like arithmetic merges here; of memory and work, XLA's own counts.
"""

from __future__ import annotations

import dataclasses
import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.core.errors import UserError
from lmx.core.model_schema import ModelConfig
from lmx.core.schema import AdapterConfig, ObjectiveConfig, OptimConfig
from lmx.core.trees import flatten_with_names, nest
from lmx.finetune.adapter import Adapter
from lmx.finetune.kernels import column_lengths
from lmx.inputs.batch import Batch
from lmx.models.decoder import Decoder, abstract_params, head_logits
from lmx.models.prepared import prepare
from lmx.models.sizes import resolve
from lmx.training.objective import NextToken
from lmx.training.optimizers import OPTIMIZERS, make_optimizer
from lmx.training.state import state_of
from lmx.training.step import train_step

SHAPE = {
    "vocab_size": 64,
    "context_length": 16,
    "width": 32,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 6,
    "mlp_dim": 40,
    "biases": "all",
    "compute_dtype": "float32",
}
TOKENS = np.random.default_rng(0).integers(0, 64, (2, 16)).astype(np.int32)


def make(config, **options):
    """Returns an adapter, its parameters away from their start, and the base."""
    model = resolve(ModelConfig(**{**SHAPE, **options}))
    rng = np.random.default_rng(1)

    def noisy(x):
        return x + 0.2 * rng.standard_normal(x.shape, np.float32)

    shapes = nn.meta.unbox(abstract_params(model))
    base = jax.tree.map(lambda x: noisy(np.zeros(x.shape, np.float32)), shapes)
    adapter = Adapter(config, model)
    params = jax.tree.map(noisy, adapter.params(jax.random.key(0), base))
    return adapter, params, base


def by_hand(adapter, params, base):
    """Returns W + s·A·B of each target, of DoRA with its own lengths as constants."""
    learned = dict(flatten_with_names(params))
    widened = dict(flatten_with_names(adapter.merge(params, adapter.frozen(base))))
    whole = {}
    for name, weight in flatten_with_names(base):
        if name in adapter.trained:
            whole[name] = learned[name]
        elif name not in adapter.targets:
            # Of few bits: what it was rounded to.
            few = adapter.config.quantize and name.endswith("kernel")
            whole[name] = widened[name] if few else weight
        else:
            a, b = learned[f"{name}/a"], learned[f"{name}/b"]
            shape, (layers, inputs, _) = weight.shape, a.shape
            w = jnp.asarray(weight).reshape(layers, inputs, -1)
            if adapter.config.quantize:
                bits = {"int8": jnp.int8, "int4": jnp.int4}[adapter.config.quantize]
                kernel = prepare(w, dtype=bits, form="cpu")
                w = kernel.weight_OI.astype(jnp.float32) * kernel.scale[..., None]
                w = jnp.swapaxes(w, -1, -2)
            w = w + adapter.scale * jnp.einsum("lir,lro->lio", a, b)
            if adapter.config.method == "dora":
                length = jnp.sqrt(jnp.sum(w**2, axis=1, keepdims=True))
                length = jax.lax.stop_gradient(length)
                w = w * learned[f"{name}/magnitude"][:, None] / length
            whole[name] = w.reshape(shape)
    return nest(whole)


def loss(model, params):
    hidden = Decoder(model).apply({"params": params}, TOKENS)
    return jnp.sin(head_logits(model, params, hidden)).mean()


CASES = [
    ({"method": "lora"}, {"layer_loop": "scan", "remat": "full"}),
    ({"method": "lora", "quantize": "int8"}, {"layer_loop": "unroll"}),
    ({"method": "lora", "quantize": "int4"}, {"layer_loop": "scan", "remat": "dots"}),
    ({"method": "rslora", "train": ("norm", "bias")}, {"layer_loop": "unroll"}),
    ({"method": "rslora", "targets": ("mlp/up",)}, {"kernels": "xla"}),
    ({"method": "dora"}, {"layer_loop": "unroll", "remat": "full"}),
    ({"method": "dora", "quantize": "int8"}, {"layer_loop": "scan"}),
    ({"train": ("bias$",)}, {"layer_loop": "scan"}),
    ({"train": ("mlp_norm", "query/kernel"), "quantize": "int8"}, {}),
]


@pytest.mark.parametrize(("options", "shape"), CASES)
def test_loss_and_gradient_are_those_through_merged_weights(options, shape):
    adapter, params, base = make(AdapterConfig(rank=3, alpha=5.0, **options), **shape)
    model, frozen = adapter.model, adapter.frozen(base)
    found, gradient = jax.jit(
        jax.value_and_grad(lambda p: loss(model, adapter.join(p, frozen)))
    )(params)
    wanted, reference = jax.jit(
        jax.value_and_grad(lambda p: loss(model, by_hand(adapter, p, base)))
    )(params)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    for (name, ours), (_, theirs) in zip(
        flatten_with_names(gradient), flatten_with_names(reference), strict=True
    ):
        scale = max(1e-6, float(np.abs(theirs).max()))
        np.testing.assert_allclose(ours, theirs, atol=2e-5 * scale, err_msg=name)


@pytest.mark.parametrize("method", ["lora", "rslora", "dora"])
def test_merged_logits_are_the_joined_ones(method):
    adapter, params, base = make(AdapterConfig(method=method, rank=4))

    @jax.jit
    def logits(params):
        hidden = Decoder(adapter.model).apply({"params": params}, TOKENS)
        return head_logits(adapter.model, params, hidden)

    frozen = adapter.frozen(base)
    joined, merged = adapter.join(params, frozen), adapter.merge(params, frozen)
    assert np.abs(logits(joined) - logits(base)).max() > 0.1
    np.testing.assert_allclose(logits(merged), logits(joined), atol=1e-5)


@pytest.mark.parametrize("method", ["lora", "rslora", "dora"])
def test_an_adapter_starts_as_its_base(method):
    adapter, _, base = make(AdapterConfig(method=method, rank=4))
    params = adapter.params(jax.random.key(0), base)
    merged = adapter.merge(params, adapter.frozen(base))
    for (name, ours), (_, theirs) in zip(
        flatten_with_names(merged), flatten_with_names(base), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7, err_msg=name)


def test_lengths_of_columns_are_those_of_the_sum():
    rng = np.random.default_rng(0)
    w, a, b = (rng.standard_normal(s) for s in ((20, 30), (20, 4), (4, 30)))
    wanted = np.linalg.norm(w + a @ b, axis=0)
    w, a, b = (jnp.asarray(x, jnp.float32) for x in (w, a, b))
    np.testing.assert_allclose(column_lengths(w, a, b), wanted, rtol=1e-5)


def compiled(config, *, rows=2, **options):
    """Returns the compiled training step, and the bytes of what does not train."""
    model = resolve(
        ModelConfig(
            **{
                **SHAPE,
                "biases": "none",
                "head_dim": 32,
                "width": 128,
                "mlp_dim": 384,
                **options,
            }
        )
    )
    adapter = None if config is None else Adapter(config, model)
    optim = OptimConfig()
    optimizer = make_optimizer(optim, steps=2)

    def begin(key, base):
        if adapter is None:
            return state_of(base, optimizer, optim)
        frozen = adapter.frozen(base)
        return state_of(adapter.params(key, base), optimizer, optim, frozen=frozen)

    shapes = nn.meta.unbox(abstract_params(model))
    state = jax.eval_shape(begin, jax.random.key(0), shapes)
    numbers = jax.ShapeDtypeStruct((rows, 16), jnp.int32)
    weights = jax.ShapeDtypeStruct((rows, 16), jnp.float32)
    batch = Batch(numbers, numbers, weights, numbers, numbers)
    step = partial(
        train_step,
        objective=NextToken(model, ObjectiveConfig()),
        optimizer=optimizer,
        config=optim,
        **({} if adapter is None else {"join": adapter.join}),
    )
    program = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
    frozen = jax.tree.leaves(state.frozen)
    return program, sum(x.size * x.dtype.itemsize for x in frozen)


def gradients_of_kernels(program):
    """Returns whether a product of the program makes something like a kernel."""
    text = program.as_text()
    return bool(re.search(r"= f32\[(128,384|384,128)\]\S* dot\(", text))


def test_no_gradient_of_a_frozen_kernel_is_computed():
    more = {"rows": 3, "layer_loop": "unroll"}
    full, _ = compiled(None, **more)
    lora, _ = compiled(AdapterConfig(method="lora", rank=4), **more)
    assert gradients_of_kernels(full)  # the search finds them where they are
    assert not gradients_of_kernels(lora)
    # Two thirds of the products' work is left, and the adapters': 2 · 3 · r (I + O).
    flops = [x.cost_analysis()["flops"] for x in (full, lora)]
    tokens, sides = 3 * 16, 2 * (2 * (128 + 128) + 2 * (128 + 64) + 3 * (128 + 384))
    kernels = 2 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 384) + 64 * 128
    saved = 2 * tokens * kernels - 6 * 4 * tokens * sides
    # The optimizer's work on every weight goes too.
    assert saved * 0.95 < flops[0] - flops[1] < saved + 60 * kernels


@pytest.mark.parametrize(
    ("loop", "quantize", "dtype"),
    [
        ("scan", None, "bfloat16"),
        ("scan", "int8", "float32"),
        ("unroll", None, "float32"),
        ("unroll", "int8", "bfloat16"),
    ],
)
def test_a_step_holds_no_second_copy_of_the_base(loop, quantize, dtype):
    config = AdapterConfig(method="lora", rank=2, quantize=quantize)
    more = {"layer_loop": loop, "compute_dtype": dtype, "rows": 1}
    temporary = []
    for layers in (2, 6):
        program, frozen = compiled(config, num_layers=layers, **more)
        memory = program.memory_analysis()
        temporary.append(memory.temp_size_in_bytes)
        assert memory.alias_size_in_bytes >= frozen  # what comes in goes out, uncopied
    of_a_layer = (temporary[1] - temporary[0]) / 4
    kernels = 2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 384
    # Activations of 16 tokens. A copy would be 1 byte a weight or more on top of them.
    assert of_a_layer < 1.5 * kernels


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_moves_all_that_an_adapter_trains(name):
    config = AdapterConfig(method="dora", rank=3, train=("bias",))
    _, params, _ = make(config)
    schedule = "constant" if name == "schedule_free_adamw" else "cosine"
    optim = OptimConfig(name=name, schedule=schedule, warmup_steps=0)
    optimizer = make_optimizer(optim, steps=4)

    def gradient(params):
        return jax.tree.map(jnp.sin, params)

    @jax.jit
    def update(params):
        more = {"grad_fn": gradient}
        state = optimizer.init(params)
        return optimizer.update(gradient(params), state, params, **more)[0]

    for leaf, change in flatten_with_names(update(params)):
        assert np.isfinite(change).all(), leaf
        assert np.asarray(change).any(), leaf


MIXTURE = {"ffns": ("moe",), "num_experts": 4, "expert_dim": 16, "biases": "none"}
LATENT = {
    "pattern": ("latent",),
    "rope_dim": 2,
    "kv_latent_dim": 8,
    "num_kv_heads": 4,
    "biases": "none",
}


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({"targets": ("mlp/upp",)}, {}, "'mlp/upp' finds no parameter"),
        ({"targets": ("mlp_norm",)}, {}, "mlp_norm/scale, which cannot"),
        ({"targets": ("embedding",)}, {}, "adapter.train"),
        ({"targets": ("experts",)}, MIXTURE, "moe/experts_down/kernel"),
        ({"targets": ("attention/key/",)}, LATENT, "attention/key/kernel"),
        ({"targets": ("(",)}, {}, "not a regular expression"),
        ({"rank": 0}, {}, "adapter.rank=0"),
        ({"rank": 13}, {}, "rank=13 is larger than blocks/0/attention/key/kernel"),
        ({"alpha": 0.0}, {}, "adapter.alpha=0.0"),
        ({"train": ("wieghts",)}, {}, "'wieghts' finds no parameter"),
        ({"targets": ("up/kernel",), "train": ("up/kernel",)}, {}, "take it out"),
        ({"method": None, "targets": ("mlp",)}, {}, "no adapter.method"),
        ({"method": None, "quantize": "int8"}, {}, "all of them do"),
        ({}, {"attention": "bidirectional"}, "adapter.method needs 'causal'"),
    ],
)
def test_what_cannot_be_adapted_is_named(options, shape, message):
    config = AdapterConfig(**{"method": "lora", "rank": 4, **options})
    model = resolve(ModelConfig(**{**SHAPE, **shape}))
    with pytest.raises(UserError) as error:
        Adapter(config, model)
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) <= 5


@pytest.mark.parametrize("shape", [MIXTURE, LATENT], ids=["experts", "latent"])
def test_by_default_every_linear_layer_but_routers_is_a_target(shape):
    if shape is LATENT:
        shape = {**shape, "query_latent_dim": 8}
    adapter, params, base = make(AdapterConfig(method="lora", rank=2), **shape)
    assert adapter.targets
    assert not any(re.search("router|experts_", name) for name in adapter.targets)
    joined = loss(adapter.model, adapter.join(params, adapter.frozen(base)))
    merged = loss(adapter.model, by_hand(adapter, params, base))
    np.testing.assert_allclose(joined, merged, rtol=1e-5)


def test_dropped_keys_are_none():
    """Each key of the section is read: another value gives another adapter."""
    plain = AdapterConfig(method="lora", rank=4)
    seen = {repr(dataclasses.astuple(plain))}
    for change in (
        {"method": "dora"},
        {"rank": 5},
        {"alpha": 1.0},
        {"targets": ("mlp",)},
        {"train": ("bias",)},
        {"quantize": "int8"},
    ):
        adapter, params, base = make(dataclasses.replace(plain, **change))
        tree = adapter.frozen(base), params
        seen.add(f"{adapter.scale} {jax.tree.map(lambda x: (x.shape, x.dtype), tree)}")
    assert len(seen) == 7

"""What the decoder must hold for every mixer and every kind of position.

Contracts run over the tables `MIXERS` and `POSITIONS`: a new entry is tested without a
new test. Values are compared with an independent model in test_attention_parity.py.
"""

from __future__ import annotations

import dataclasses
import typing

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.core.errors import UserError
from lmx.core.model_schema import ModelConfig
from lmx.core.schema import ObjectiveConfig
from lmx.core.trees import flatten_with_names
from lmx.inputs.batch import Batch
from lmx.models.block import MIXERS
from lmx.models.decoder import Decoder, abstract_params, unrolled
from lmx.models.sizes import resolve
from lmx.training.objective import NextToken
from lmx.training.step import summed_gradient

POSITIONS = typing.get_args(typing.get_type_hints(ModelConfig)["positions"])
QUICKLY = {"xla_backend_optimization_level": 0}  # for programs that run a few times
WINDOW, LENGTH, VOCAB = 3, 12, 31


def make(**changes):
    """Returns a tiny resolved config and random parameters for it."""
    shape = {"vocab_size": VOCAB, "context_length": LENGTH, "width": 8, "mlp_dim": 8}
    loop = {"num_layers": 2, "layer_loop": "scan", "compute_dtype": "float32"}
    if "latent" in changes.get("pattern", ()):
        shape |= {"rope_dim": 2, "kv_latent_dim": 3}
    if "moe" in changes.get("ffns", ()):
        shape |= {"num_experts": 4, "expert_dim": 5, "shared_experts": 1}
    config = resolve(
        ModelConfig(**{**shape, "num_heads": 2, "window": WINDOW, **loop, **changes})
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jnp.asarray(0.5 * rng.standard_normal(x.shape, np.float32)),
        nn.meta.unbox(abstract_params(config)),
    )
    return config, params


def compiled(function, *args):
    return jax.jit(function).lower(*args).compile(compiler_options=QUICKLY)


@pytest.mark.parametrize(
    ("mixer", "positions", "attention"),
    [
        *((mixer, p, "causal") for mixer in MIXERS for p in POSITIONS),
        *((mixer, "rope", "bidirectional") for mixer in MIXERS),
    ],
)
@pytest.mark.parametrize("ffns", [("mlp",), ("moe",)])
def test_hidden_states_have_gradients_of_the_tokens_they_see_only(
    mixer, positions, attention, ffns
):
    if "moe" in ffns and positions != "rope":
        pytest.skip("experts know nothing of positions")
    config, params = make(
        pattern=(mixer,), positions=positions, attention=attention, ffns=ffns
    )
    tokens = np.arange(LENGTH, dtype=np.int32)[None]  # row s of the table is token s
    probe = np.random.default_rng(1).normal(size=(1, 1, 8)).astype(np.float32)

    def states(embedding):
        varied = {**params, "embedding": embedding}
        hidden = Decoder(config).apply({"params": varied}, tokens)
        return (hidden * probe).sum(-1)[0]

    table = params["embedding"]
    jacobian = compiled(jax.jacrev(states), table)(table)[:, :LENGTH]
    reached = np.abs(np.asarray(jacobian)).sum(-1) != 0  # [state t, token s]
    state, token = np.ogrid[:LENGTH, :LENGTH]
    far = config.num_layers * (WINDOW - 1) if mixer == "window" else LENGTH
    seen = (token <= state) | (attention == "bidirectional")
    np.testing.assert_array_equal(reached, seen & (abs(state - token) <= far))


DOCUMENTS = ((5, 4, 3), (2, 9), (6, 1, 4))  # lengths; the last row ends in padding


def packed_and_apart():
    """Returns a packed batch, and batches with each of its documents in its own row."""
    rng = np.random.default_rng(2)

    def empty():
        ints = [np.zeros((3, LENGTH), np.int32) for _ in range(4)]
        return Batch(ints[0], ints[1], np.zeros((3, LENGTH), np.float32), *ints[2:])

    packed, apart = empty(), [empty() for _ in range(3)]
    for row, lengths in enumerate(DOCUMENTS):
        start = 0
        for number, size in enumerate(lengths):
            values = (
                rng.integers(0, VOCAB, size),
                rng.integers(0, VOCAB, size),
                rng.random(size) + 0.5,
                np.ones(size),
                np.arange(size),
            )
            alone = apart[number]
            for field, own, value in zip(packed, alone, values, strict=True):
                field[row, start : start + size] = value
                own[row, :size] = value
            packed.segment_ids[row, start : start + size] = number + 1
            start += size
    return packed, apart


@pytest.mark.parametrize("positions", POSITIONS)
def test_packed_losses_and_gradients_are_the_sums_of_unpacked_ones(positions):
    config, params = make(
        pattern=tuple(MIXERS), positions=positions, ffns=("moe", "mlp", "moe")
    )
    packed, apart = packed_and_apart()
    objective = NextToken(config, ObjectiveConfig(z_loss=1e-3))
    gradient = compiled(
        lambda params, batch: summed_gradient(objective, params, batch), params, packed
    )
    grads, sums = gradient(params, packed)
    alone = [gradient(params, batch) for batch in apart]
    totals = jax.tree.map(lambda *x: np.sum(x, axis=0, dtype=np.float64), *alone)
    for name in ("loss", "value", "weight"):
        np.testing.assert_allclose(sums[name], totals[1][name], rtol=1e-5)
    for (name, grad), (_, total) in zip(
        flatten_with_names(grads), flatten_with_names(totals[0]), strict=True
    ):
        error = np.linalg.norm(grad - total) / max(np.linalg.norm(total), 1e-3)
        assert error <= 1e-5, name


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_other_documents_and_padding_leave_hidden_states_alone(attention):
    config, params = make(
        pattern=tuple(MIXERS), attention=attention, ffns=("mlp", "moe")
    )
    packed, _ = packed_and_apart()

    def states(tokens):
        return Decoder(config).apply(
            {"params": params},
            tokens,
            positions=packed.positions,
            segment_ids=packed.segment_ids,
        )

    run = compiled(states, packed.tokens)
    before = run(packed.tokens)
    assert np.isfinite(before).all()
    for segment in (0, 1, 2):
        own = packed.segment_ids == segment
        after = run(np.where(own, (packed.tokens + 1) % VOCAB, packed.tokens))
        np.testing.assert_array_equal(before[~own], after[~own])
        assert (before[own] != after[own]).any()


LOOPS = [
    {"layer_loop": loop, "remat": remat}
    for loop in ("scan", "unroll")
    for remat in ("none", "dots", "full")
]


@pytest.fixture(scope="module")
def deep():
    """A dense layer, two periods of two and one layer more, with a packed batch."""
    made = make(
        pattern=("attention", "window"), num_layers=6, dense_layers=1, ffns=("moe",)
    )
    return made, packed_and_apart()[0]


def deep_gradient(deep, loop):
    (config, params), batch = deep
    objective = NextToken(dataclasses.replace(config, **loop), ObjectiveConfig())

    def gradient(params):
        return summed_gradient(objective, params, batch)

    return compiled(gradient, params)(params)


@pytest.fixture(scope="module")
def first_loop(deep):
    return deep_gradient(deep, LOOPS[0])


@pytest.mark.parametrize("loop", LOOPS[1:], ids=lambda loop: "-".join(loop.values()))
def test_scan_unroll_and_remat_give_the_same_loss_and_gradients(deep, first_loop, loop):
    grads, sums = deep_gradient(deep, loop)
    np.testing.assert_allclose(sums["value"], first_loop[1]["value"], rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        grads,
        first_loop[0],
    )


def test_scan_and_unroll_have_the_same_initial_parameters():
    config = make(pattern=("attention", "window"), num_layers=3)[0]
    key, tokens = jax.random.key(3), jnp.zeros((1, 4), jnp.int32)
    scan, unroll = (
        Decoder(dataclasses.replace(config, layer_loop=loop)).init
        for loop in ("scan", "unroll")
    )
    first, second = (
        nn.meta.unbox(compiled(init, key, tokens)(key, tokens)["params"])
        for init in (scan, unroll)
    )
    assert jax.tree.structure(first) == jax.tree.structure(second)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    # Of the scale that the config names, smaller by sqrt(2 · layers) into the residual.
    for name, x in flatten_with_names(first):
        if name.endswith(("kernel", "embedding")):
            into_residual = name.endswith(("out/kernel", "down/kernel"))
            expected = 0.02 / np.sqrt(6) if into_residual else 0.02
            assert 0.7 * expected < np.std(x) < 1.3 * expected, name
    blocks = first["blocks"]
    assert np.any(
        blocks["0"]["mlp"]["up"]["kernel"] != blocks["1"]["mlp"]["up"]["kernel"]
    )


def test_a_leftover_layer_is_a_tail_and_short_stacks_have_no_blocks():
    names = lambda **c: {  # noqa: E731
        (name.split("/")[0], name.split("/")[1], x.shape[0])
        for name, x in flatten_with_names(make(**c)[1])
        if "/mlp/up" in name
    }
    pattern = ("window", "window", "attention")
    assert names(pattern=pattern, num_layers=8) == {
        *(("blocks", str(i), 2) for i in range(3)),
        *(("tail", str(i), 1) for i in range(2)),
    }
    assert names(pattern=pattern, num_layers=2) == {("tail", "0", 1), ("tail", "1", 1)}
    assert names(pattern=pattern, num_layers=3) == {
        ("blocks", str(i), 1) for i in range(3)
    }


LLAMA_AXES = {
    "embedding": ("vocab", "embed"),
    "head": ("vocab", "embed"),
    "final_norm/scale": ("embed",),
    "blocks/0/mixer_norm/scale": ("layers", "embed"),
    "blocks/0/mlp_norm/scale": ("layers", "embed"),
    "blocks/0/attention/query/kernel": ("layers", "embed", "heads", "head_dim"),
    "blocks/0/attention/key/kernel": ("layers", "embed", "kv_heads", "head_dim"),
    "blocks/0/attention/value/kernel": ("layers", "embed", "kv_heads", "head_dim"),
    "blocks/0/attention/out/kernel": ("layers", "heads", "head_dim", "embed"),
    "blocks/0/mlp/gate/kernel": ("layers", "embed", "mlp"),
    "blocks/0/mlp/up/kernel": ("layers", "embed", "mlp"),
    "blocks/0/mlp/down/kernel": ("layers", "mlp", "embed"),
}
GPT2_AXES = {
    **{k: v for k, v in LLAMA_AXES.items() if k != "head" and "gate" not in k},
    "position_embedding": ("position", "embed"),
    "final_norm/bias": ("embed",),
    "blocks/0/mixer_norm/bias": ("layers", "embed"),
    "blocks/0/mlp_norm/bias": ("layers", "embed"),
    "blocks/0/attention/query/bias": ("layers", "heads", "head_dim"),
    "blocks/0/attention/key/bias": ("layers", "kv_heads", "head_dim"),
    "blocks/0/attention/value/bias": ("layers", "kv_heads", "head_dim"),
    "blocks/0/attention/out/bias": ("layers", "embed"),
    "blocks/0/mlp/up/bias": ("layers", "mlp"),
    "blocks/0/mlp/down/bias": ("layers", "embed"),
    "blocks/0/attention/query_norm/scale": ("layers", "head_dim"),
    "blocks/0/attention/query_norm/bias": ("layers", "head_dim"),
    "blocks/0/attention/key_norm/scale": ("layers", "head_dim"),
    "blocks/0/attention/key_norm/bias": ("layers", "head_dim"),
}
GPT2 = {
    "positions": "learned",
    "norm": "layernorm",
    "mlp": "gelu",
    "biases": "all",
    "qk_norm": "layernorm",
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"head": "untied", "num_kv_heads": 1}, LLAMA_AXES), (GPT2, GPT2_AXES)],
    ids=["llama", "gpt2"],
)
def test_every_parameter_has_its_name_and_logical_axes(changes, expected):
    config = make(**changes)[0]
    boxed = abstract_params(config)
    leaves = jax.tree.leaves(
        boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)
    )
    named = flatten_with_names(nn.meta.unbox(boxed))
    found = {name: box.names for (name, _), box in zip(named, leaves, strict=True)}
    assert found == expected
    sizes = {"layers": 2, "vocab": VOCAB, "position": LENGTH, "embed": 8, "mlp": 8}
    sizes |= {"heads": 2, "kv_heads": config.num_kv_heads, "head_dim": 4}
    for name, x in named:
        assert x.shape == tuple(sizes[axis] for axis in expected[name]), name
        assert x.dtype == jnp.float32


def test_auto_unrolls_shallow_stacks_on_cpu_and_scans_deep_ones():
    assert unrolled(make(layer_loop="auto", num_layers=12)[0])
    assert not unrolled(make(layer_loop="auto", num_layers=13)[0])


def test_an_unknown_mixer_names_the_nearest():
    with pytest.raises(UserError, match="'windw'; did you mean 'window'"):
        make(pattern=("windw",))


def test_hidden_states_have_the_compute_dtype_and_a_residual_of_its_own():
    for residual in ("float32", "bfloat16"):
        config, params = make(compute_dtype="bfloat16", residual_dtype=residual)
        tokens = jax.ShapeDtypeStruct((2, 4), jnp.int32)
        apply = lambda t, c=config, p=params: Decoder(c).apply({"params": p}, t)  # noqa: E731
        assert jax.eval_shape(apply, tokens).dtype == jnp.bfloat16
        text = str(jax.make_jaxpr(apply)(tokens))
        short = {"float32": "f32", "bfloat16": "bf16"}[residual]
        assert f"{short}[2,4,8]" in text
